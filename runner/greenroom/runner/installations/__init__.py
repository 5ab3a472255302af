"""Installations on disk: building, verifying, sweeping.

- `builder`: performs the installer's effects: builds, inspects and removes
- `inspection`: what installations there are, and whether each can be used
- `environment`: builds Python environments: plan, fetch, unpack, probe, commit
- `image`: installs from container images
- `image_resolution`: from an image's name to its layers
- `image_layers`: unpacks the layers of an image
- `source_builds`: installs what is compiled on this machine
- `compiling`: runs cmake and ninja
- `toolchain`: looks for compilers, headers, cmake and ninja
- `external`: installations of the user's own
- `archive`: exports an installation to a file, and imports it
- `lock_file`: the shipped locks: what a variant and its environment are made of, by hash; kept downloads
- `resolution`: resolves a version into a lock
- `pythons`: the Python that an environment is made for
- `given_lock`: a lock of the user's own
- `sources`: package indexes, proxies and credentials, from the settings of pip and uv
- `uv`: runs uv, and says what its failures mean
- `verified_download`: fetches wheels and checks the hash of each
- `web`: the HTTP client for package indexes
- `tar_stream`: reads archives from others
- `verification`: an installation's mark, and whether the disk still agrees with it
- `compute_check`: proves that an installation computes on this machine
- `installed`: finds, checks, sweeps and removes installations; space on their disk; what all kinds share
- `errors`: what the system refuses, as a failure
"""
