"""The actor that installs backends: one job at a time for each, retried, verified on disk at every start.

- `core`: its commands: each begins a job, or joins the current one
- `state`: what is stored of each backend, and which clients wait
- `reconcile`: the numbered steps that follow a change: attempts, the default backend, retiring; which variant
  is installed, offered, or tried after a failure
- `disk_inspection`: what an inspection of the disk means for what the journal says
- `versions`: which installation is in use, and whether it is whole
- `uninstalling`: uninstall, cancel, leave
- `environments`: the same for a program's own environments, which have no engines
- `messages`: commands and replies
- `events`: what is stored
- `effects`: work for the builder
- `errors`: refusals
"""
