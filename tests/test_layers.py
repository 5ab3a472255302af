"""The rules of the source's shape: which layer may import which, who makes durable state, who appends."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).parent.parent
# The two packages themselves are no layer: they say what is public, and import it when it is used.
SOURCES = (ROOT / "actors", ROOT / "runner")
LISTS = {
    *(source / "greenroom" / "__init__.py" for source in SOURCES),
    *(source / "greenroom" / source.name / "__init__.py" for source in SOURCES),
}
FILES = sorted({path for source in SOURCES for path in source.glob("greenroom/*/**/*.py")} - LISTS)

# Each layer may import itself and those before it; the longest name that fits counts.
LAYERS = (
    ("actors.fork",),
    ("actors.journal",),
    ("actors.kernel",),
    ("actors",),
    ("runner.systems",),
    (
        "runner.errors",
        "runner.units",
        "runner.user_home",
        "runner.home",
        "runner.config",
        "runner.setting_values",
        "runner.setting_readers",
        "runner.remote_settings",
        "runner.threads",
    ),
    ("runner.devices",),
    ("runner.backends", "runner.installations", "runner.engines", "runner.models", "runner.registry"),
    ("runner",),
    ("runner.daemon", "runner.daemon_lock"),
    ("runner.http",),
    ("runner.embedded",),
    ("runner.client",),
    ("runner.environments",),
    ("runner.cli",),
)

# Threads, timers and live readings for the others: the only modules of `actors/` that are not pure.
NOT_PURE = {"actors.fork", "actors.gates", "actors.progress", "actors.testing"}
KERNEL_PROTOCOLS = {"actors.kernel.core", "actors.kernel.clock", "actors.kernel.errors"}
IMPURE_LIBRARIES = set(
    "asyncio datetime io logging os pathlib pykka random secrets shutil signal socket sqlite3 subprocess "
    "sys tempfile threading time uuid".split()
)
HOMES = {
    "aiohttp": ("runner.http.aiohttp_adapter",),
    "pykka": ("actors.kernel",),
    "sqlite3": ("actors.journal", "runner.http.responses.store", "runner.record.table"),
    "tenacity": ("actors.retry",),
    "xxhash": ("runner.conversations",),
}

MAKERS = ("apply", "_apply", "initial")
"""How the functions that may make durable state are named."""


@dataclass(frozen=True)
class Module:
    name: str
    path: Path

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(), str(self.path))

    @functools.cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    def imports(self) -> Iterator[str]:
        """Dotted names, without our own distribution's `greenroom.`."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name.removeprefix("greenroom.") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name} imports relatively"
                source = (node.module or "").removeprefix("greenroom.")
                yield source
                # `from greenroom.actors import events` names a module; `… import Event` a thing in one.
                yield from (
                    f"{source}.{alias.name}" for alias in node.names if f"{source}.{alias.name}" in NAMES
                )


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[2:]).removesuffix(".__init__")


NAMES = {name_of(path) for path in FILES}
MODULES = [Module(name_of(path), path) for path in FILES]


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer_of(name: str) -> int:
    fitting = [
        (len(one), rank) for rank, packages in enumerate(LAYERS) for one in packages if is_in(name, one)
    ]
    return max(fitting)[1]


PURE = [
    module
    for module in MODULES
    if is_in(module.name, "actors")
    and not is_in(module.name, "actors.kernel")
    and not is_in(module.name, "actors.journal")
    and module.name not in NOT_PURE
]


def test_both_source_roots_begin_the_package_with_the_same_text() -> None:
    for name in ("__init__.py", "__init__.pyi"):
        one, other = ((source / "greenroom" / name).read_text() for source in SOURCES)
        assert one == other


def test_imports_go_one_way() -> None:
    wrong = [
        f"{module.name} lies below {name}"
        for module in MODULES
        for name in module.imports()
        if name in NAMES and layer_of(name) > layer_of(module.name)
    ]
    assert not wrong


def test_the_kernel_knows_the_journals_port_and_nothing_else_of_ours() -> None:
    for module in MODULES:
        if is_in(module.name, "actors.kernel"):
            ours = {name for name in module.imports() if name in NAMES and not is_in(name, "actors.kernel")}
            assert ours <= {"actors.journal.port"}, f"{module.name} imports {ours}"


@pytest.mark.parametrize("word", ["greenroom", "model", "engine", "backend", "http", "daemon"])
def test_the_kernel_has_no_word_of_what_it_is_used_for(word: str) -> None:
    for module in MODULES:
        if is_in(module.name, "actors.kernel"):
            text = re.sub(
                r"greenroom\.actors\.\w+|^from greenroom\b.*", "", module.path.read_text(), flags=re.MULTILINE
            )
            text = re.sub(r"daemon=True|use_daemon_thread", "", text)
            found = re.findall(rf".*\b{word}s?\b.*", text, re.IGNORECASE)
            assert not found, f"{module.name}: {found}"


def test_cores_are_pure_and_import_only_the_kernels_protocols() -> None:
    for module in PURE:
        names = set(module.imports())
        kernel = {name for name in names if is_in(name, "actors.kernel") or is_in(name, "actors.journal")}
        assert kernel <= KERNEL_PROTOCOLS, f"{module.name} imports {kernel - KERNEL_PROTOCOLS}"
        impure = {name.partition(".")[0] for name in names} & IMPURE_LIBRARIES
        assert not impure, f"{module.name} is pure and imports {impure}"


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_a_library_is_used_in_one_place(library: str, homes: tuple[str, ...]) -> None:
    users = {
        module.name for module in MODULES if library in {name.partition(".")[0] for name in module.imports()}
    }
    assert users
    assert all(any(is_in(user, home) for home in homes) for user in users), users


def test_what_runs_in_an_installations_own_python_imports_nothing_of_ours() -> None:
    alone = [one for one in MODULES if ".launch_" in one.name]
    assert len(alone) >= 3
    for module in alone:
        assert not [name for name in module.imports() if name in NAMES], module.name


def test_a_keeper_is_made_of_few_modules_and_the_standard_library() -> None:
    by_name = {one.name: one for one in MODULES}
    found, left = set(), ["runner.engines.keeper_main"]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [one for one in by_name[name].imports() if one in NAMES]
    assert found == {
        *("runner.engines.keeper_main", "runner.engines.keeper", "runner.engines.keeper_log"),
        *("runner.systems", "runner.systems.linux", "runner.systems.macos"),
    }
    for name in found:
        others = {one.partition(".")[0] for one in by_name[name].imports() if not is_in(one, "runner")}
        assert others <= sys.stdlib_module_names, name


def is_of(node: ast.AST, module: str, names: set[str]) -> bool:
    """Whether this is one of these names of a module."""
    match node:
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return owner == module and name in names
    return False


def test_files_are_forced_to_the_disk_in_one_way() -> None:
    """`os.fsync` alone leaves them in the drive's cache on macOS."""
    callers = {
        module.name
        for module in MODULES
        for node in module.nodes
        if is_of(node, "os", {"fsync", "sync", "fdatasync"})
    }
    assert callers == {"actors.journal.fsync", "runner.systems.linux", "runner.systems.macos"}


def test_what_depends_on_the_system_is_asked_of_its_module() -> None:
    known = {
        "runner.systems": "chooses",
        "runner.systems.linux": "is one",
        "runner.systems.packages": "which packages this system takes",
        "runner.backends.base": "the platform's name, a value of its own",
        "runner.engines.launchers.end_with_keeper": "runs in an installation's own Python",
        "runner.cli.first_process": "is the first process of a container or not",
        "runner.config": "where data lies without a home of its own",
        "runner.memory": "whether Metal's limit counts",
        "runner.installations.archive": "part of a name",
        "runner.installations.sources": "where pip and uv keep their settings",
    }
    askers = {
        module.name
        for module in MODULES
        for node in module.nodes
        if is_of(node, "sys", {"platform"}) or is_of(node, "os", {"uname"})
    }
    assert askers <= set(known), askers - set(known)


# only `apply` makes durable state


def durable_types() -> set[type]:
    """What the cores' `initial` return, and every struct inside that is no fact others know too."""
    found: set[type] = set()
    for module in PURE:
        loaded = importlib.import_module(f"greenroom.{module.name}")
        for _, core in inspect.getmembers(loaded, inspect.isclass):
            if core.__module__ == loaded.__name__ and {"initial", "apply", "decide"} <= set(vars(core)):
                found |= inside(typing.get_type_hints(core.initial)["return"])  # type: ignore[attr-defined]
    return found


def inside(annotation: Any) -> set[type]:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        if annotation.__module__ == "greenroom.actors.values" or annotation.__module__.endswith(".messages"):
            return set()
        found = {annotation}
        for hint in typing.get_type_hints(annotation).values():
            found |= inside(hint)
        return found
    return {one for part in typing.get_args(annotation) for one in inside(part)}


DURABLE = durable_types()
DURABLE_NAMES = {kind.__name__ for kind in DURABLE}


def functions(tree: ast.Module) -> Iterator[tuple[str, list[ast.arg], ast.AST]]:
    """Each function and method of a module with its parameters; the module itself comes last."""
    nested: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node not in nested:
            nested |= {one for one in ast.walk(node) if one is not node}
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield node.name, arguments, node


def called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def root(node: ast.expr) -> str:
    """The variable an expression starts from: `state` in `state.of(x).job`."""
    while True:
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr="_state"):
                return "state"
            case ast.Attribute(value=inner) | ast.Subscript(value=inner):
                node = inner
            case ast.Call(func=inner):
                node = inner
            case ast.Name(id=name):
                return name
            case _:
                return ""


def from_state(function: ast.AST, arguments: list[ast.arg]) -> set[str]:
    """The variables of a function that hold durable state or a part of it."""
    held = {
        one.arg
        for one in arguments
        if one.annotation is not None
        and {part.id for part in ast.walk(one.annotation) if isinstance(part, ast.Name)} & DURABLE_NAMES
    } | {"state"}
    for _ in range(3):  # a variable of a variable of a variable
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and root(node.value) in held:
                held |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return held


def makers_of_state(source: ast.Module) -> Iterator[str]:
    """Where a module makes durable state outside `apply`."""
    for name, arguments, function in functions(source):
        if name.startswith(MAKERS):
            continue
        held = from_state(function, arguments)
        replaces = {"replace", "force_setattr", "__setattr__"} | {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and ast.unparse(node.value).endswith(".replace")
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            if called(node) in DURABLE_NAMES and (node.args or node.keywords):  # without, it is a default
                yield f"{name} makes a {called(node)} (line {node.lineno})"
            elif called(node) in replaces and node.args and root(node.args[0]) in held:
                yield f"{name} changes durable state: {ast.unparse(node)[:60]} (line {node.lineno})"


def test_the_durable_types_of_all_actors_are_known() -> None:
    assert {"InstallerState", "JobState", "SchedulerState", "RunnerState", "LibraryState"} <= DURABLE_NAMES
    assert all(kind.__struct_config__.frozen for kind in DURABLE)  # type: ignore[attr-defined]


def test_only_apply_makes_durable_state() -> None:
    for module in MODULES:
        if is_in(module.name, "actors"):
            assert not list(makers_of_state(module.tree)), module.name


@pytest.mark.parametrize(
    "breach",
    [
        "def decide(self, state): return InstallerState(version=2)",
        "def _turn(self): return replace(self._state.loads['x'], admitted_at=0)",
        "def _ensure(self, state): return msgspec.structs.replace(state, version=1)",
        "def _ensure(self, state):\n  change = msgspec.structs.replace\n  return change(state.of(1), jobs=2)",
        "def _ensure(self, s: InstallerState):\n  job = s.of('mlx').job\n  return replace(job, attempt=2)",
    ],
)
def test_a_breach_of_that_rule_would_be_found(breach: str) -> None:
    assert list(makers_of_state(ast.parse(breach)))


def test_an_actor_takes_its_state_from_apply_alone() -> None:
    kernel = [module for module in MODULES if is_in(module.name, "actors.kernel")]
    places = {
        (module.name.rpartition(".")[2], name)
        for module in kernel
        for name, _, function in functions(module.tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == "state" and isinstance(node.ctx, ast.Store)
    }
    # A replay folds; the steps take over what they have folded and stored.
    assert places == {
        ("event_store", "__init__"),
        ("event_store", "replay"),
        ("steps", "__init__"),
        ("steps", "commit"),
    }


# only the kernel appends


def appends(source: ast.Module) -> Iterator[str]:
    """Where a module stores something: nothing can be appended but an `Entry` of the journal's port."""
    for node in ast.walk(source):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("greenroom.actors.journal"):
            yield from (f"imports {one.name}" for one in node.names if one.name in ("Entry", "as_entry"))
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append"
        ):
            on = ast.unparse(node.func.value)
            if "journal" in on.lower() or any(word.arg == "urgent" for word in node.keywords):
                yield f"calls {on}.append (line {node.lineno})"


def test_only_the_kernel_appends_to_a_journal() -> None:
    for module in MODULES:
        if is_in(module.name, "actors.kernel") or is_in(module.name, "actors.journal"):
            continue
        if module.name == "actors.testing":  # its `FaultyJournal` is a journal
            continue
        assert not list(appends(module.tree)), module.name


@pytest.mark.parametrize(
    "breach",
    [
        "self.journal.append([entry])",
        "log.append(batch, urgent=True)",
        "from greenroom.actors.journal.port import Entry, Record",
    ],
)
def test_a_breach_of_this_rule_is_found_too(breach: str) -> None:
    assert list(appends(ast.parse(breach)))


def test_modules_are_of_a_readable_size() -> None:
    long = {
        module.name: lines for module in MODULES if (lines := len(module.path.read_text().splitlines())) > 600
    }
    assert not long


def test_no_public_class_name_means_two_things() -> None:
    places: dict[str, list[str]] = {}
    for module in MODULES:
        for node in module.nodes:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module.name)
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_every_package_lists_its_modules_and_packages() -> None:
    """But for the two roots, whose modules CONTRIBUTING.md lists (tests/test_contributing.py)."""
    packages = [
        path for path in FILES if path.name == "__init__.py" and len(path.relative_to(ROOT).parts) > 4
    ]
    for path in packages:
        inside = {one.stem for one in path.parent.glob("*.py")} - {"__init__"}
        inside |= {one.parent.name for one in path.parent.glob("*/__init__.py")}
        named = {
            name
            for line in (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
            for item in re.findall(r"(?:^- |; )((?:`\w+`(?:, )?)+):", line)
            for name in re.findall(r"\w+", item)
        }
        assert named == inside, f"{path}: {inside ^ named}"
    assert len(packages) >= 29


def test_tests_import_clients_libraries_only_where_they_use_them() -> None:
    """Each process of a test run collects every file, and these take seconds to import."""
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.parents[1].name != "programs"]
    early = re.compile(r"^(?:import|from) (anthropic|ollama|openai|schemathesis)\b", re.MULTILINE)
    assert not {path.name: found for path in files if (found := early.findall(path.read_text()))}
    assert early.findall("import openai\nfrom openai_types import events_of") == ["openai"]
