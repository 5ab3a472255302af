"""A small client of OCI registries: for the images backends come in, and for models that are artifacts."""
