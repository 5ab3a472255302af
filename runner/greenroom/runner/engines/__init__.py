"""Engine processes: keepers, launchers, readiness, health, and why one ended.

- `host`: performs the runner's effects: starts, watches and stops engines,
  and finds out what became of one whose keeper has died
- `handle`: one engine: whether it is loading, ready or dead (`Probe`, `judge`), and what is reported of it
- `slots`: has an engine save and restore what its slots have read
- `adoption`: takes over the engines of an earlier daemon, after a restart
- `keeper`: the small process that owns an engine, and ends it if the daemon does not come back
- `keeper_main`: the program of a keeper
- `keeper_log`: the engine's output, head and tail
- `keeper_watch`: the daemon's connection to each keeper, which tells of a keeper's death; a spare keeper
- `folders`: the files and sockets of engines
- `health_monitor`: looks at all engines all the time
- `liveness`: judges whether an engine still works
- `memory_watch`: finds engines that take too much memory; `memory_bound` judges
- `memory_bound`: how much memory an engine may take
- `reachability`: whether an engine's socket has a listener, and whose it is
- `gpu_time`: graphics time that processes use
- `exit_report`: why an engine ended, in one sentence
- `launchers`: programs that run inside an installation's own Python
"""
