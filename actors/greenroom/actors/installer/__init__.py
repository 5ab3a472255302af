"""The actor that installs backends: one job a backend, retried, and looked up on disk after a restart."""
