"""One small declaration per backend: what to install, how to start it, what it can do."""
