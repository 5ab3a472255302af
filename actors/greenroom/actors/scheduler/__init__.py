"""The actor that decides which engine serves a request, what is loaded where, and what is evicted.

- `core`: what it is asked
- `state`: what is stored (loads, breakers, quarantines, configurations), and what lives only as long as it
  does
- `reconcile`: the numbered steps of a turn, from ended loads to stored wishes
- `turn_context`: what the steps of one turn share
- `queue`: where requests wait, whose turn it is, and what each is given or refused
- `backend_choice`: which backend serves a model, and which installation of it
- `quarantine`: what follows from failed loads: breakers, pauses, models that an older version is to serve
- `placement`: where an engine could have its memory
- `layers`: how a model is divided between devices and the machine's memory
- `eviction`: which idle engines are evicted for a load, and which end because a command asks for it
- `moving`: which idle engine is loaded again where more of its model lies on devices
- `ledger`: what memory is reserved, and what is free
- `holdings`: what memory each engine holds, reserved or measured
- `ledger_reading`: the ledger as `ps` and `status` show it
- `messages`: commands and replies
- `events`: what is stored
- `effects`: what is done at the gates and on the progress board
- `errors`: refusals
"""
