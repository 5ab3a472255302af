"""The journal: one port, and the stores behind it.

- `port`: what every store of events does, and what it raises
- `sqlite`: the journal in one SQLite file
- `in_memory`: the journal in memory
- `schema`: the tables of the database
- `chain`: the checksum of each row, over the row before it
- `reader`: reads a journal, also while it is written to
- `maintenance`: verify, count, export, import, back up, put away
- `files`: the files of a journal on the disk
- `fsync`: forces files to the disk
- `writer_lock`: one writer a journal
- `conformance`: the tests that any store must pass
"""
