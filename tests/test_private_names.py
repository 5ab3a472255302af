"""No module uses the private names of another: not in the product, its tests, the examples or the bench."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for name in ("actors", "runner", "tests", "bench", "examples")
    for path in (ROOT / name).rglob("*.py")
)

DOCUMENTED = {"_exit", "_replace", "_asdict", "_fields", "_make"}
"""Public by their documentation: of `os`, and of named tuples."""
OF_OTHERS = {
    "pykka": {"_create_actor_inbox", "_start_actor_loop"},  # a mailbox of one's own; no entry in its registry
    "mlx_lm": {
        *(
            "_make_logits_processors",
            "_run_http_server",
            "_generation_thread",
            "_states",
        ),  # to hook into its server
        *("_next_request", "_prompt_batch"),  # to see what it computes
    },
    "aiohttp": {"_loop", "_kwargs"},  # a server with a request handler of one's own
    "tarfile": {"_sparse_structs"},  # whether a sparse file's map goes on
    "hashlib": {"_Hash"},  # the type of a hash
    "typing": {"_is_protocol"},  # `typing.is_protocol` comes with Python 3.13
    "sys": {"_base_executable"},  # the Python that an environment was made from
    "threading": {"_bootstrap"},  # a thread that dies before it has begun
}
"""Names of other packages that have no public one for it."""
ALLOWED = DOCUMENTED.union(*OF_OTHERS.values())
PATCHES = {"setattr", "getattr", "hasattr", "delattr", "patch", "object", "attrgetter", "methodcaller"}


# A quick look: few of a thousand files need to be parsed.
USES = re.compile(
    rf"(?<!\bself)(?<!\bcls)(?<!\bsuper\(\))\._[a-z]|\b(?:{'|'.join(PATCHES)})\([^)]*[\"'.]_[a-z]"
    r"|^\s*from [^\n]*\b_[a-z]|^\s*from [^\n]*\([^)]*\b_[a-z]",
    re.MULTILINE,
)
DERIVES = re.compile(r"^\s*class \w+\(.*(?:def|self\.|super\(\)\.) ?_[a-z]", re.MULTILINE | re.DOTALL)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in ALLOWED


def breaches(text: str) -> Iterator[str]:
    """Where a module uses a private name that is not its own."""
    for node in ast.walk(ast.parse(text)) if USES.search(text) else ():
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super"))):
                pass  # see `inherited`
            case ast.Attribute(attr=name) if is_private(name):
                yield f"line {node.lineno}: {ast.unparse(node)[:80]}"
            case ast.ImportFrom(module=source, names=names):
                parts = [*(source or "").split("."), *(one.name for one in names)]
                yield from (f"line {node.lineno}: imports {one}" for one in parts if is_private(one))
            case ast.Call(func=ast.Attribute(attr=function) | ast.Name(id=function), args=arguments):
                texts = [one.value for one in arguments if isinstance(one, ast.Constant)]
                for one in texts if function in PATCHES else ():
                    if isinstance(one, str) and any(map(is_private, one.split("."))):
                        yield f"line {node.lineno}: {function} {one}"


def private_names(tree: ast.AST) -> set[str]:
    """The methods and attributes of a class, or that it uses, that are private."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(
                value=ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super")), attr=name
            ):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
    return {name for name in names if is_private(name)}


@functools.cache
def private_names_of(module: str, name: str) -> set[str]:
    """Those of a class of ours, and of what it is made from; empty for what is no class."""
    found = getattr(importlib.import_module(module), name)
    classes = inspect.getmro(found) if inspect.isclass(found) else ()
    sources = [inspect.getsource(one) for one in classes if one.__module__.startswith("greenroom.")]
    return {one for source in sources for one in private_names(ast.parse(inspect.cleandoc(f"\n{source}")))}


def inherited(text: str) -> Iterator[str]:
    """Where a class uses or replaces a private name of a class of ours that it is made from."""
    tree = ast.parse(text if DERIVES.search(text) else "")
    modules = {
        one.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("greenroom.")
        for one in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in (ast.unparse(one).partition("[")[0] for one in node.bases):
                theirs = private_names_of(modules[base] or "", base) if base in modules else set[str]()
                for name in private_names(node) & theirs:
                    yield f"line {node.lineno}: a {base} whose {name} is used or replaced"


def test_no_module_uses_a_private_name_of_another() -> None:
    found = {path: list(breaches(path.read_text())) for path in FILES}
    assert not {str(path.relative_to(ROOT)): lines for path, lines in found.items() if lines}


def test_no_test_takes_a_private_name_from_a_class_of_ours() -> None:
    found = {path: list(inherited(path.read_text())) for path in FILES if "greenroom" not in path.parts}
    assert not {str(path.relative_to(ROOT)): lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    "breach",
    [
        "host._handles",
        "from greenroom.runner.errors import _bounded",
        "monkeypatch.setattr(module, '_wait', 1)",
        "monkeypatch.setattr('greenroom.runner.http.admission._works', 1)",
        "mock.patch('greenroom.runner._code')",
        "getattr(host, '_handles')",
    ],
)
def test_a_breach_of_that_rule_is_found(breach: str) -> None:
    assert list(breaches(breach))


def test_a_private_name_that_is_inherited_is_found() -> None:
    text = (
        "from greenroom.actors.testing import Case\nclass Mine(Case[int, int]):\n  def _begin(self): self.x"
    )
    assert list(inherited(text)) == ["line 2: a Case whose _begin is used or replaced"]
