"""A small client of OCI registries, for the images of backends and for model artifacts.

- `client`: reads one repository: manifests, tags and blobs, with tokens, mirrors and redirects
- `upload`: publishes to one repository
- `credentials`: from Docker's configuration and credential helpers
- `images`: indexes, manifests, and the choice of a platform
"""
