"""A small client of OCI registries, for the images of backends and for model artifacts."""
