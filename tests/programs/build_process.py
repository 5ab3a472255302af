"""Compiles a toy until it is killed. Arguments: data directory, CMakeLists.txt, the file `MARK`."""

from __future__ import annotations

import sys
from pathlib import Path

from greenroom.runner.installations.source_builds import SourceBuilds
from greenroom.runner.installations.sources import PackageSources, Setting
from package_index import serving
from source_toys import source_toy

home, cmake, mark = sys.argv[1:]
with serving() as index:
    build = source_toy(index, cmake=cmake, MARK=mark)
    sources = PackageSources(index=Setting(f"{index.url}/simple", "test"))
    SourceBuilds(Path(home), sources).build("toy", build, job="j1", variant="build-native")
