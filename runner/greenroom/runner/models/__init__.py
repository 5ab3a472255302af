"""Models: names, where they come from, and the store.

- `store`: the model store on the disk
- `index`: its list of models and tags
- `manifest`: a model's manifest, and the files that engines get
- `manifest_checks`: checks manifests from registries and archives
- `selection`: which files of a folder or a repository are the model
- `arrival`: a model on its way into the store
- `puller`: performs the library's effects: pulls, and changes of the store
- `pusher`: publishes models
- `sources`: one module for each place that models come from
- `references`, `near_names`: the names of models; which one may have been meant
- `short_names`: short names, and what they stand for
- `search`: searches for models
- `preflight`: whether a model can be stored and run here
- `metadata`: what a model's files say of it
- `purpose`: what it is made for by that: texts, embeddings or reranking
- `gguf`: reads GGUF headers
- `gguf_layers`: weights and cache of each layer
- `safetensors`: reads safetensors headers
- `templates`: finds chat templates
- `description`: models as the API shows them
- `archive`: models as tar files
- `packing`: `greenroom package`
- `safe_open`: opens files without leaving a folder
- `sweep`: removes what belongs to no model
- `files`: helpers for files that may disappear
- `errors`: the failures of storing a model
"""
