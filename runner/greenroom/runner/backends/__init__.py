"""One small declaration a backend: what to install, how to start it, what it can do."""
