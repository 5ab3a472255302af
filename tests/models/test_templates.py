"""Chat templates: found wherever models keep them, and laid where engines look for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.runner.models.description import template_of
from greenroom.runner.models.store import ModelStore
from greenroom.runner.models.templates import of_folder, of_header

Folder = Callable[..., Path]
NAMED = [{"name": "default", "template": "{{ plain }}"}, {"name": "tool_use", "template": "{{ tools }}"}]


@pytest.fixture
def stored(store: ModelStore, model_folder: Folder, tmp_path: Path) -> Callable[..., tuple[str, Path]]:
    """Stores a folder with these files; its id, and what an engine gets."""

    def make(**files: Any) -> tuple[str, Path]:
        folder = model_folder(tmp_path / "m")
        (folder / "tokenizer_config.json").unlink()
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name.replace("__", ".")).write_text(text)
        with store.arrival() as arrival:
            for path in sorted(folder.iterdir()):
                arrival.take(path, path.name, how="link", cancel=threading.Event())
            model = store.commit(arrival)
        return model.id, store.open_model(model.id).path

    return make


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"chat_template": "{{ plain }}"}, []),
        ({"chat_template": NAMED}, ["default", "tool_use"]),
        ({"default": "{{ plain }}", "tool_use": "{{ tools }}"}, ["default", "tool_use"]),
    ],
)
def test_a_chat_template_json_is_laid_where_engines_look(
    content: Any, names: list[str], stored: Callable[..., tuple[str, Path]], store: ModelStore
) -> None:
    model_id, folder = stored(chat_template__json=content)
    assert (folder / "chat_template.jinja").read_text() == "{{ plain }}"
    assert template_of(store, model_id) == {"file": "chat_template.json", "names": names}
    (folder / "chat_template.jinja").unlink()
    assert (store.open_model(model_id).path / "chat_template.jinja").exists()


def test_a_template_under_another_name_is_laid_where_engines_look(
    stored: Callable[..., tuple[str, Path]], store: ModelStore
) -> None:
    model_id, folder = stored(template__jinja="{{ mine }}", chat_template__json={"chat_template": "{{ no }}"})
    assert (folder / "chat_template.jinja").read_text() == "{{ mine }}"
    assert template_of(store, model_id) == {"file": "template.jinja", "names": []}


def test_what_engines_find_by_themselves_is_left_as_it_is(
    stored: Callable[..., tuple[str, Path]], store: ModelStore
) -> None:
    model_id, folder = stored(
        tokenizer_config__json={"chat_template": NAMED}, chat_template__json={"chat_template": "{{ no }}"}
    )
    assert not (folder / "chat_template.jinja").exists()
    assert template_of(store, model_id) == {"file": "tokenizer_config.json", "names": ["default", "tool_use"]}


def test_engines_own_name_goes_before_all_others(
    stored: Callable[..., tuple[str, Path]], store: ModelStore
) -> None:
    model_id, folder = stored(
        chat_template__jinja="{{ a }}",
        chat_template__json={"chat_template": "{{ no }}"},
        other__jinja="{{ b }}",
    )
    assert (folder / "chat_template.jinja").read_text() == "{{ a }}"
    assert template_of(store, model_id) == {"file": "chat_template.jinja", "names": []}


@pytest.mark.parametrize(
    "content", ["", "{torn", "[]", "{}", '{"chat_template": 7}', '{"chat_template": []}', "[" * 9000]
)
def test_what_holds_no_template_is_passed_over(
    content: str, stored: Callable[..., tuple[str, Path]], store: ModelStore
) -> None:
    model_id, folder = stored(chat_template__json=content, tokenizer_config__json=content)
    assert not (folder / "chat_template.jinja").exists()
    assert template_of(store, model_id) is None


def test_the_templates_of_a_gguf_file_are_named(
    store: ModelStore, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    keys = {"tokenizer.chat_template": "{{ a }}", "tokenizer.chat_template.tool_use": "{{ b }}"}
    for name, some in (("none", {}), ("one", dict(list(keys.items())[:1])), ("two", keys)):
        (tmp_path / f"{name}.gguf").write_bytes(gguf(some))
        with store.arrival() as arrival:
            arrival.take(tmp_path / f"{name}.gguf", "m.gguf", how="link", cancel=threading.Event())
            model = store.commit(arrival, tag=name)
        expected = {
            "none": None,
            "one": {"file": "tokenizer.chat_template", "names": []},
            "two": {"file": "tokenizer.chat_template", "names": ["default", "tool_use"]},
        }
        assert template_of(store, model.id) == expected[name]
    assert of_header([]) is None
    assert of_folder([]) is None
