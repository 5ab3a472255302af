"""docs/reference.md: every public name, made of signatures and docstrings; `make docs` writes it.

The groups are the tables of "What is public" in docs/embedding.md.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from pages import ROOT

PAGE = ROOT / "docs" / "reference.md"
PACKAGES = ("greenroom.runner", "greenroom.actors")
HEAD = """# API reference

Every public name, made of the docstrings by `make docs`. [Greenroom inside your program](embedding.md) says
how they belong together, the [cookbook](cookbook.md) has programs to copy. Sizes are in bytes and times in
seconds, unless a line says otherwise. `from greenroom import …` has the names that most programs start with:
"""
Definition = ast.FunctionDef | ast.AsyncFunctionDef


def groups(package: str) -> dict[str, list[str]]:
    """The public names of a package, by what they are for, as docs/embedding.md lists them."""
    public = (ROOT / "docs" / "embedding.md").read_text("utf-8").partition("## What is public")[2]
    table = public.partition(f"### {package}\n")[2].partition("\n### ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ") and "`" in line]
    return {title.strip("| "): re.findall(r"`(\w+)`", names) for title, names in rows}


def render() -> str:
    """The page."""
    first = ", ".join(f"`{name}`" for name in importlib.import_module("greenroom").__all__)
    parts = [HEAD + textwrap.fill(f"{first}.", 118, break_on_hyphens=False)]
    for package in PACKAGES:
        parts.append(f"## {package}")
        for title, names in groups(package).items():
            parts.append(f"### {package}: {title}")
            for name in names:
                parts += _entry(name, getattr(importlib.import_module(package), name), package)
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _entry(name: str, value: Any, package: str) -> Iterator[str]:
    yield f"#### {name}"
    if inspect.isclass(value):
        yield from _class(value)
    elif inspect.isfunction(value):
        node = _node(value)
        assert isinstance(node, Definition)
        yield _signature(node, {})
        yield _text(inspect.getdoc(value))
    else:
        yield _text(_described(name, package))


def _class(kind: type) -> Iterator[str]:
    yield f"class `{kind.__name__}{_arguments_of(kind)}`{_bases(kind)}"
    own = _node(kind)
    assert isinstance(own, ast.ClassDef)
    yield _text(ast.get_docstring(own))
    fields: list[str] = []
    methods: list[str] = []
    seen: set[str] = set()
    for owner, types in _owners(kind):
        node = _node(owner)
        assert isinstance(node, ast.ClassDef)
        for member, doc in _members(node):
            name = member.name if isinstance(member, Definition) else ast.unparse(member.target)
            if name in seen or doc.startswith("See `Greenroom."):
                continue  # overridden, or there for Greenroom's own use
            seen.add(name)
            if isinstance(member, ast.AnnAssign):
                fields.append(f"- `{_renamed(ast.unparse(member), types)}`{_behind(doc)}")
            elif member.name == "__init__":
                methods += [_text(doc)] if doc else []
            elif _is_property(member):
                returned = f": {_renamed(ast.unparse(member.returns), types)}" if member.returns else ""
                fields.append(f"- `{member.name}{returned}`{_behind(doc)}")
            else:
                methods += [f"##### {kind.__name__}.{member.name}", _signature(member, types)]
                methods.append(_text(doc or _inherited(kind, member.name)))
    if fields:
        yield "\n".join(fields)
    yield from methods


def _owners(kind: type) -> Iterator[tuple[type, Mapping[str, str]]]:
    """The class and those of its bases that are not public, each with the types that stand for its own."""
    types: dict[str, str] = {}
    for owner in kind.__mro__:
        if not owner.__module__.startswith("greenroom.") or (owner is not kind and owner in _public()):
            continue
        yield owner, types
        node = _node(owner)
        assert isinstance(node, ast.ClassDef)
        for base, given in zip(owner.__bases__, node.bases, strict=False):
            parameters: tuple[Any, ...] | None = getattr(base, "__parameters__", None)
            if isinstance(given, ast.Subscript) and parameters:
                chosen = given.slice.elts if isinstance(given.slice, ast.Tuple) else [given.slice]
                names = (str(one.__name__) for one in parameters)
                pairs = zip(names, map(ast.unparse, chosen), strict=False)
                types |= {name: text for name, text in pairs if name not in types}


@functools.cache
def _public() -> frozenset[Any]:
    modules = [importlib.import_module(package) for package in PACKAGES]
    values = (getattr(module, name) for module in modules for name in module.__all__)
    return frozenset(value for value in values if inspect.isclass(value))


@functools.cache
def _node(value: Any) -> ast.stmt:
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def _members(node: ast.ClassDef) -> Iterator[tuple[Definition | ast.AnnAssign, str]]:
    """What is public in a class, with its docstring; of a method with overloads the one that they are of."""
    for place, member in enumerate(node.body):
        if isinstance(member, Definition):
            hidden = member.name.startswith("_") and member.name != "__init__"
            if not hidden and not _has(member, "overload"):
                yield member, ast.get_docstring(member) or ""
        elif isinstance(member, ast.AnnAssign) and not ast.unparse(member.target).startswith("_"):
            yield member, _literal(node.body[place + 1 :])


def _literal(rest: list[ast.stmt]) -> str:
    """The docstring of a field: a text that stands behind it."""
    match rest:
        case [ast.Expr(value=ast.Constant(value=str(text))), *_]:
            return inspect.cleandoc(text)
    return ""


def _has(node: Definition, decorator: str) -> bool:
    return any(decorator in ast.unparse(one) for one in node.decorator_list)


def _is_property(node: Definition) -> bool:
    return _has(node, "property")


def _arguments_of(kind: type) -> str:
    node = _node(kind)
    assert isinstance(node, ast.ClassDef)
    for member, _ in () if _has_hidden_arguments(kind) else _members(node):
        if isinstance(member, Definition) and member.name == "__init__":
            return f"({_arguments(member.args, {})})"
    return ""


def _has_hidden_arguments(kind: type) -> bool:
    """Programs get these from calls; they do not make them."""
    return kind.__module__.startswith("greenroom.runner.client.")


def _bases(kind: type) -> str:
    bases = [base.__name__ for base in kind.__bases__ if base in _public() or base.__module__ == "builtins"]
    bases = [name for name in bases if name not in ("object", "dict")]
    return f", a kind of {', '.join(f'`{name}`' for name in bases)}" if bases else ""


def _signature(node: Definition, types: Mapping[str, str]) -> str:
    awaited = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    if _has(node, "classmethod"):
        awaited = "classmethod "
    returns = f" -> {_renamed(ast.unparse(node.returns), types)}" if node.returns else ""
    return f"`{awaited}{node.name}({_arguments(node.args, types)}){returns}`"


def _arguments(arguments: ast.arguments, types: Mapping[str, str]) -> str:
    text = re.sub(r"^(self|cls)(, (/, )?|$)", "", ast.unparse(arguments))
    return _renamed(re.sub(r"(: [^=:]+)=", r"\1 = ", text), types)


def _renamed(text: str, types: Mapping[str, str]) -> str:
    names = "|".join(map(re.escape, types))
    chosen = re.sub(rf"\b({names})\b", lambda match: types[match[1]], text) if types else text
    return chosen.replace("Coroutine[Any, Any, ", "Awaitable[")


def _inherited(kind: type, name: str) -> str:
    """A docstring of a base, or where the protocol that the class follows describes the method."""
    for protocol in (
        one for one in _public() if Protocol in getattr(one, "__bases__", ()) and one is not kind
    ):
        if inspect.getdoc(getattr(protocol, name, None)) and _follows(kind, protocol):
            return f"See `{protocol.__name__}.{name}`."
    return inspect.getdoc(getattr(kind, name)) or ""


def _follows(kind: type, protocol: type) -> bool:
    """Most of it: what a base for others leaves to them is missing."""
    wanted = [name for name in vars(protocol) if not name.startswith("_")]
    return sum(hasattr(kind, name) for name in wanted) > len(wanted) / 2


def _described(name: str, package: str) -> str:
    """The docstring of a constant."""
    stub = (ROOT / package.split(".")[1] / package.replace(".", "/") / "__init__.pyi").read_text()
    found = re.search(rf"^from (\S+) import {name} as ", stub, re.MULTILINE)
    assert found
    body = ast.parse(inspect.getsource(importlib.import_module(found[1]))).body
    for place, node in enumerate(body):
        if isinstance(node, ast.AnnAssign | ast.Assign) and re.match(rf"{name}\b", ast.unparse(node)):
            return _literal(body[place + 1 :])
    raise AssertionError(f"{found[1]} does not assign {name}")


def _behind(doc: str) -> str:
    return f": {_indented(doc)}" if doc else ""


def _indented(doc: str) -> str:
    return textwrap.indent(_text(doc), "  ").lstrip()


def _text(doc: str | None) -> str:
    """A docstring as Markdown: its sections become lists."""
    lines: list[str] = []
    section = False
    for line in inspect.cleandoc(doc or "").splitlines():
        if re.fullmatch(r"(Args|Raises|Returns|Yields):", line):
            lines += [line, ""]
            section = True
        elif section and (item := re.match(r"    (\*{0,2}[\w.]+): (.*)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("    "):
            lines.append("  " + line.strip())
        else:
            section = section and not line
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render())
