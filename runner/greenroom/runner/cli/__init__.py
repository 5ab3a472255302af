"""The command line. A module is imported when a command of it is used.

Modules with commands:

- `main`: all commands, and where each is
- `run`, `bench`: one question or a chat; how quick a model is
- `models`, `transfers`, `create`: the store; pull, push, package, export, load; models of other models
- `adopt`: models that other programs keep
- `configure`, `config`: how a model is loaded; all settings
- `backends`: installing; `devices`: graphics devices
- `engines`, `memory`: what runs, and unloading; who holds memory, and what waits for it
- `requests`, `saved_conversations`: the record of requests; what the disk keeps of conversations
- `log`, `diagnosis`, `journal`: log; why, replay and bundle; the journal itself
- `serve`, `daemon`, `jobs`: the daemon; its status, logs and stop; its installs, pulls and pushes
- `launch`: starts other programs with our models
- `completion`, `help`: what the shell completes; help

What they share:

- `output`, `display`, `answers`: text and tables; progress; answers as they come
- `problem`: the exception that commands end with
- `chat_session`, `chat`, `saved_chats`: what was said; a chat's commands; chats on the disk
- `line_editor`, `prompt_files`: the line of a chat; files in a prompt
- `modelfile`: reads Ollama's description of a model
- `client_programs`: the programs that `launch` starts
- `other_runners`: what people type who know other runners
- `local_names`: names that were given to models on this machine
- `variants`: what `run` says of variants; `remotes`: remote backends in lists
- `live`, `remote_journal`: what the daemon says for `why`; the journal of a daemon elsewhere
- `daemon_logging`, `first_process`: a daemon's log; a daemon as the first process of a container
- `__main__`: where the program begins
"""
