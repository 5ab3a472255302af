"""Installs vllm-metal from an image, as on a Mac, and prints the bytes that have arrived; tests kill it.

`install_image_process.py HOME USER_HOME REFERENCE`
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from greenroom.runner.backends.base import Image, Platform
from greenroom.runner.backends.discovery import BACKENDS
from greenroom.runner.installations.image import Images
from greenroom.runner.installations.sources import PackageSources

home, user_home, reference = sys.argv[1:]
source = BACKENDS["vllm-metal"].source
assert isinstance(source, Image)
mac = Platform(system="darwin", machine="arm64", python=(3, 12), macos=(15, 1))
images = Images(Path(home), PackageSources(), platform=mac, user_home=Path(user_home))
images.build(
    "vllm-metal",
    replace(source, reference=reference, version="0.2.0"),
    job="j1",
    progress=lambda progress: print(progress.done, flush=True),
)
