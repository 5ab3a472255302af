"""A tree as vllm-metal's image has it: a Python of its own, and in it a server that only pretends."""

from __future__ import annotations

import shutil
import sys
import venv
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent.parent / "programs"


def make_tree(folder: Path, version: str = "0.2.0", *, server: Path | None = None) -> Path:
    """Make one: `bin/python3` (a copy), `vllm_metal`, a stand-in for vLLM's server, prebuilt kernels."""
    venv.EnvBuilder(symlinks=False, with_pip=False).create(folder)
    # The program named python3 alone, and no execute bits to rely on, as in the vendor's image.
    (folder / "bin" / "python").unlink()
    for extra in (folder / "lib64", *folder.glob("bin/[Aa]ctivate*")):
        extra.unlink()
    (packages,) = folder.glob("lib/python3.*/site-packages")
    for name in ("vllm_metal", "vllm", "vllm/entrypoints", "vllm/entrypoints/openai"):
        (packages / name).mkdir()
        (packages / name / "__init__.py").touch()
    (packages / "vllm_metal" / "__init__.py").write_text(f"VERSION = {version!r}\n")
    shutil.copyfile(PROGRAMS / "fake_engine.py", packages / "vllm" / "fake_engine.py")
    target = packages / "vllm" / "entrypoints" / "openai" / "api_server.py"
    shutil.copyfile(server or PROGRAMS / "stand_in_vllm.py", target)
    (folder / "bin" / "python-alias").symlink_to("python3")
    (folder / "prebuilt").mkdir()
    (folder / "prebuilt" / "_paged_ops.so").write_text(f"kernels of {version}")
    (folder / "prebuilt" / "_paged_ops.so.sha256").write_text(f"stamp of {version}")
    assert sys.prefix != str(folder)
    return folder
