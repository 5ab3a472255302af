"""What engines have read, kept on the disk so that it need not be read again after they have ended.

- `saver`: saves them before engines end, and while they are idle
- `restorer`: restores them for requests, from the disk or from another slot
- `saveable`: the engines that support this
- `slot_notes`: what slots hold, noted for the next daemon
- `costs`: what it costs to save, to restore and to read again
- `prompt_hashes`: the hashes by which a prompt's beginnings are found
- `sums`: what became of them, for the journal
- `restoration`: what became of a search for one
- `store`: the saved conversations of a data directory
- `entry`: one of them, and how its metadata lies on the disk
- `index`: which of them begins as a prompt does
- `value`: which of them go first when there is no room
- `budget`: how many bytes they may take, and how many may be written a day
- `checking`: checks a file before an engine reads it; `why_not`: why so little of a prompt can be restored
- `files`: their files: checksums, moving in, lending out
"""
