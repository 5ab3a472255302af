"""The index as a value: whatever is done to it, tags are unique, and what is written is what is read."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from greenroom.actors.values import Model
from greenroom.runner.models.index import Index, IndexDamaged, IndexEntry

IDS = [f"sha256:{c * 64}" for c in "abcd"]
ids = st.sampled_from(IDS)
tags = st.sampled_from(["docker.io/ai/m:latest", "docker.io/ai/m:v1", "file:/a b/ü.gguf", "hf.co/x", "x"])
prints = st.text(max_size=5)


def entry(model_id: str, *names: str, source: str = "", fingerprint: str = "f") -> IndexEntry:
    model = Model(id=model_id, tags=names, size=7, created=1.5, source=source)
    return IndexEntry(model, 99, {model_id: (7, 8)}, (fingerprint,))


class IndexMachine(RuleBasedStateMachine):
    """The index beside the plainest thing that could be it: a dict of tags, and the ids in order."""

    def __init__(self) -> None:
        super().__init__()
        self.index = Index()
        self.order: list[str] = []
        self.tags: dict[str, str] = {}

    @rule(model_id=ids, names=st.lists(tags, max_size=2, unique=True), fingerprint=prints)
    def add(self, model_id: str, names: list[str], fingerprint: str) -> None:
        self.index = self.index.with_model(entry(model_id, *names, fingerprint=fingerprint))
        if model_id not in self.order:
            self.order.append(model_id)
        self.tags |= dict.fromkeys(names, model_id)
        found = self.index.find(model_id)
        assert found is not None
        assert found.fingerprints[-1] == fingerprint
        assert len(found.fingerprints) <= 8

    @rule(model_id=ids, tag=tags)
    def tag(self, model_id: str, tag: str) -> None:
        if model_id in self.order:
            self.index = self.index.with_tag(model_id, tag)
            self.tags[tag] = model_id
        else:
            with pytest.raises(KeyError):
                self.index.with_tag(model_id, tag)

    @rule(tag=tags)
    def untag(self, tag: str) -> None:
        self.index = self.index.without_tag(tag)
        self.tags.pop(tag, None)

    @rule(model_id=ids)
    def remove(self, model_id: str) -> None:
        self.index = self.index.without_model(model_id)
        self.order = [i for i in self.order if i != model_id]
        self.tags = {t: i for t, i in self.tags.items() if i != model_id}

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        assert [e.id for e in self.index.entries] == self.order
        assert {t: e.id for e in self.index.entries for t in e.model.tags} == self.tags
        assert sum(len(e.model.tags) for e in self.index.entries) == len(self.tags)
        for tag, model_id in self.tags.items():
            found = self.index.tagged(tag)
            assert found is not None
            assert found.id == model_id

    @invariant()
    def what_is_written_is_what_is_read(self) -> None:
        assert Index.decode(self.index.encode()) == self.index


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_a_model_that_comes_again_keeps_when_and_where_it_first_came_from() -> None:
    index = Index().with_model(entry(IDS[0], "a", source="first"))
    again = entry(IDS[0], "b", source="second")
    model = index.with_model(again).entries[0].model
    assert (model.tags, model.source, model.created) == (("a", "b"), "first", 1.5)


def test_the_written_index_is_an_oci_index() -> None:
    document = msgspec.json.decode(Index().with_model(entry(IDS[0], "a", "b")).encode())
    assert document["schemaVersion"] == 2
    assert document["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert [m["digest"] for m in document["manifests"]] == [IDS[0], IDS[0]]
    names = [m["annotations"]["org.opencontainers.image.ref.name"] for m in document["manifests"]]
    assert names == ["a", "b"]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_index_are_refused(data: bytes) -> None:
    with pytest.raises(IndexDamaged):
        Index.decode(data)


@given(st.integers(0, 2_000), st.integers(0, 7))
def test_a_flipped_bit_gives_an_index_or_a_refusal(at: int, bit: int) -> None:
    data = bytearray(Index().with_model(entry(IDS[0], "a")).encode())
    data[at % len(data)] ^= 1 << bit
    try:
        Index.decode(bytes(data))
    except IndexDamaged as error:
        assert "\n" not in str(error)  # noqa: PT017
