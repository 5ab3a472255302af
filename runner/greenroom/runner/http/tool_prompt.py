"""Tools for a model whose chat template has none: described in its instructions, found in its answer.

The model is asked to call a tool as `<tool_call>{"name": …, "arguments": …}</tool_call>`, the form that most
templates with tools have. Where it must call one, a JSON schema leaves it nothing else to say.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from greenroom.runner.engines.launchers.answer_schema import call_schema
from greenroom.runner.http.answer_filters import Chunk, ChunkFilter, overlap
from greenroom.runner.http.bodies import NOT_UNDERSTOOD
from greenroom.runner.http.long_deltas import in_pieces

_encode = msgspec.json.Encoder().encode

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BARE = ('{"name":', '[{"name":', '```{"name":', '```json{"name":', '```json[{"name":')
"""How models begin a call that forget the tags, without spaces."""
_FENCE = re.compile(r"\A```(?:json)?\s*|\s*```\Z")
_BEGINNING = re.compile(
    r"""\s*(?:```(?:json)?\s*)?\{\s*"name"\s*:\s*"(?P<name>[^"\\]*)"\s*"""
    r""",\s*"(?:arguments|parameters)"\s*:\s*(?P<arguments>\{.*)""",
    re.DOTALL,
)
"""The beginning of a call whose end is missing: a name alone is none."""
_TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls")
_FUNCTION = ("name", "description", "parameters")


class ToolPrompt(ChunkFilter):
    def __init__(self, chat: Mapping[str, Any], *, instructs: bool) -> None:
        """`instructs` says whether the model's template has a place for instructions."""
        choice = chat.get("tool_choice", "auto")
        named = choice["function"]["name"] if isinstance(choice, dict) else ""
        offered = [] if choice == "none" else [tool["function"] for tool in chat.get("tools") or ()]
        self._offered = [one for one in offered if named in ("", one["name"])]
        self._must = bool(self._offered) and (bool(named) or choice == "required")
        self._names = frozenset(one["name"] for one in self._offered)
        self._instructs = instructs
        self._answers: dict[int, _Answer] = {}
        # The field that the client knows.
        self.names = {"response_format": "tool_choice"} if self._must else {}

    def chat(self, chat: Mapping[str, Any]) -> dict[str, Any]:
        changed = {name: value for name, value in chat.items() if name not in _TOOL_FIELDS}
        changed["messages"] = self._instructed(_told(chat["messages"]))
        if self._must:
            schema = {"name": "call", "schema": call_schema(self._offered), "strict": True}
            changed["response_format"] = {"type": "json_schema", "json_schema": schema}
        return changed

    def chunk(self, chunk: Chunk) -> Iterator[Chunk]:
        if not self._offered or not chunk.get("choices"):
            yield chunk
            return
        choices = []
        for choice in chunk["choices"]:
            answer = self._answers.setdefault(choice.get("index") or 0, self._answer())
            delta = dict(choice.get("delta") or {})
            text = answer.add(delta.pop("content", None) or "")
            calls: list[dict[str, Any]] = []
            if finish := choice.get("finish_reason"):
                text, calls = answer.ended(text, finish)
                finish = _finish(finish, calls)
            more = ({"content": text} if text else {}) | ({"tool_calls": calls} if calls else {})
            choices.append({**choice, "delta": {**delta, **more}, "finish_reason": finish})
        yield from in_pieces({**chunk, "choices": choices})

    def completion(self, completion: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._offered or "choices" not in completion:
            return completion
        choices = []
        for choice in completion["choices"]:
            message, finish = dict(choice.get("message") or {}), choice.get("finish_reason")
            answer = self._answer()
            text, calls = answer.ended(answer.add(message.get("content") or ""), finish)
            if calls:
                for call in calls:
                    del call["index"]  # only streams have it
                message |= {"content": text.strip() or None, "tool_calls": calls}
                finish = _finish(finish, calls)
            choices.append({**choice, "message": message, "finish_reason": finish})
        return {**completion, "choices": choices}

    def _answer(self) -> _Answer:
        return _Answer(self._names, bare=self._must)

    def _instructed(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not self._offered:
            return messages
        prompt = _prompt(self._offered, must=self._must)
        if messages and messages[0]["role"] in ("system", "developer"):
            return [_with(messages[0], after=f"\n\n{prompt}"), *messages[1:]]
        if self._instructs:
            return [{"role": "system", "content": prompt}, *messages]
        at = next((index for index, one in enumerate(messages) if one["role"] == "user"), None)
        if at is None:
            return [{"role": "user", "content": prompt}, *messages]
        return [*messages[:at], _with(messages[at], before=f"{prompt}\n\n"), *messages[at + 1 :]]


@dataclass
class _Answer:
    """The text of one answer as it comes: what is not part of a call passes."""

    names: frozenset[str]
    """The tools there are."""
    bare: bool
    """All of it is a call, without tags."""
    _held: str = ""
    _said: bool = False
    """Text has passed."""
    _calls: list[dict[str, Any]] = field(default_factory=list)

    def add(self, text: str) -> str:
        """The text that can be passed on now."""
        self._held += text
        passed = ""
        while self._held and not self.bare:
            begin = self._held.find(_OPEN)
            if begin < 0:
                if not self._said and _may_be_call(self._held):
                    break
                keep = overlap(self._held, _OPEN)
                passed += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                break
            passed += self._held[:begin]
            self._held = self._held[begin:]
            end = self._held.find(_CLOSE)
            if end < 0:
                break
            block, self._held = self._held[: end + len(_CLOSE)], self._held[end + len(_CLOSE) :]
            if not self._take(block[len(_OPEN) : end]):
                passed += block
        if self._calls and not passed.strip():
            return ""  # only what stands between calls
        self._said = self._said or bool(passed.strip())
        return passed

    def ended(self, text: str, finish: str | None) -> tuple[str, list[dict[str, Any]]]:
        """The last text, after `text`, and the calls.

        The last call may be cut off, as at OpenAI, where the answer has reached its limit.
        """
        held, self._held = self._held, ""
        if held.strip():
            is_call = self.bare or held.startswith(_OPEN) or _may_be_call(held)
            call = held.removeprefix(_OPEN)
            call = call[: len(call) - overlap(call, _CLOSE)]
            cut_off = finish == "length"
            taken = is_call and (cut_off or finish == "stop" or self.bare) and self._take(call)
            if not taken and not (is_call and cut_off and self._take_beginning(call)):
                text += held
        return text, self._calls

    def _take(self, text: str) -> bool:
        """Note the call, or the list of calls, that a text is; False if it is none."""
        try:
            found = msgspec.json.decode(_FENCE.sub("", text.strip()).encode())
        except NOT_UNDERSTOOD:
            return False
        calls = [*map(self._call, found if isinstance(found, list) else [found])]
        made = [call for call in calls if call is not None]
        if not calls or len(made) < len(calls):
            return False
        for name, arguments in made:
            self._note(name, _encode(arguments).decode())
        return True

    def _take_beginning(self, text: str) -> bool:
        """Note the call that a text begins, with what there is of its arguments; False if it begins none."""
        found = _BEGINNING.match(text)
        if found is None or found["name"] not in self.names:
            return False
        self._note(found["name"], found["arguments"])
        return True

    def _note(self, name: str, arguments: str) -> None:
        function = {"name": name, "arguments": arguments}
        named = {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
        self._calls.append({"index": len(self._calls), **named, "function": function})

    def _call(self, found: object) -> tuple[str, dict[str, Any]] | None:
        if not isinstance(found, dict) or found.get("name") not in self.names:
            return None
        arguments = found.get("arguments", found.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = msgspec.json.decode(arguments.encode() or b"{}")
            except NOT_UNDERSTOOD:
                return None
        return (found["name"], arguments) if isinstance(arguments, dict) else None


def _finish(finish: str | None, calls: Sequence[object]) -> str | None:
    """Why an answer with these calls has ended: a limit stays one."""
    return "tool_calls" if calls and finish != "length" else finish


def _may_be_call(text: str) -> bool:
    """Whether it begins, or may still begin, as a call without tags does."""
    dense = "".join(text.split())
    return any(one.startswith(dense) or dense.startswith(one) for one in _BARE)


def _prompt(offered: Sequence[Mapping[str, Any]], *, must: bool) -> str:
    tools = "\n".join(
        _encode({name: one[name] for name in _FUNCTION if name in one}).decode() for one in offered
    )
    form = '{"name": "the tool\'s name", "arguments": {…}}'
    how = (
        f"Call one of them now: answer with {form} alone."
        if must
        else f"To call one, answer with {_OPEN}{form}{_CLOSE} alone. You then get its result in "
        "<tool_response></tool_response>. Where no tool is needed, answer as usual."
    )
    return f"You have these tools; their parameters are JSON schemas:\n{tools}\n{how}"


def _told(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with calls and their results as texts, which every template can show."""
    told: list[dict[str, Any]] = []
    answered = False
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>"
            if answered:
                told[-1]["content"] += f"\n{text}"
            else:
                told.append({"role": "user", "content": text})
            answered = True
            continue
        if answered and message["role"] == "user":
            # Some templates want user and assistant to take turns.
            told[-1] = _with(message, before=f"{told[-1]['content']}\n\n")
        elif calls := message.get("tool_calls"):
            rest = {name: value for name, value in message.items() if name != "tool_calls"}
            said = _text(message.get("content"))
            told.append({**rest, "content": "\n".join([*([said] if said else []), *map(_called, calls)])})
        else:
            told.append(dict(message))
        answered = False
    return told


def _called(call: Mapping[str, Any]) -> str:
    function = call["function"]
    arguments: Any = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = msgspec.Raw(arguments.encode())
    made = _encode({"name": function["name"], "arguments": arguments}).decode()
    return f"{_OPEN}{made}{_CLOSE}"


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part.get("type") == "text")
    return content or ""


def _with(message: Mapping[str, Any], *, before: str = "", after: str = "") -> dict[str, Any]:
    """The message with more text."""
    content = message.get("content") or ""
    if isinstance(content, list):
        parts = [{"type": "text", "text": text} for text in (before, after)]
        content = [*parts[: bool(before)], *content, *(parts[1:] if after else [])]
    else:
        content = f"{before}{content}{after}"
    return {**message, "content": content}
