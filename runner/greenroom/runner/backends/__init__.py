"""One small declaration per backend: what to install, how to start it, what it can do.

- `base`: what a backend declares
- `llama_cpp`, `mlx`, `vllm`: the backends that ship with Greenroom
- `discovery`: finds these and those of other packages
- `variants`: which build of a backend suits this machine, in order; the installer takes the first that works
- `device_users`: which variants would use which device
- `flags`: the flags that users may set
- `source_build`: what is declared to compile a backend
- `llama_cpp_builds`: how llama.cpp is compiled
- `llama_cpp_log`: what its log says of where a model lies
- `schema_width`: JSON schemas that would keep llama.cpp busy for too long
- `table`: writes the tables in `docs/backends.md`
"""
