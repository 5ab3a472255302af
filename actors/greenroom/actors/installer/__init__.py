"""The actor that installs backends: one job at a time for each, retried, verified on disk at every start."""
