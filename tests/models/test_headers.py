"""Headers: what is read from good ones, and that hostile ones are refused quickly and cheaply."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from greenroom.runner.errors import JobFailed
from greenroom.runner.models.gguf import read_header
from greenroom.runner.models.metadata import count_text, read_metadata
from tiny_vision import projector

Make = Callable[..., bytes]


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IIQ", 9, kind, count) + content


def refusal(path: Path) -> str:
    with pytest.raises(JobFailed) as caught:
        read_metadata([path])
    failure = caught.value.failure
    assert (failure.kind, failure.code) == ("permanent", "not_a_model")
    assert failure.message.endswith(".")
    assert "\n" not in failure.message
    return failure.message


def written(tmp_path: Path, data: bytes, name: str = "x.gguf") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def test_a_gguf_header_is_read(tmp_path: Path, gguf: Make) -> None:
    metadata = read_metadata([written(tmp_path, gguf({"tokenizer.chat_template": "{{ x }}"}))])
    assert (metadata.architecture, metadata.quantization, metadata.context_length) == ("llama", "F16", 512)
    assert metadata.parameter_count == 1024
    assert metadata.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert metadata.chat_template
    assert metadata.raw["llama.block_count"] == "2"


def test_a_projector_is_known_by_its_header_and_says_what_the_model_reads(tmp_path: Path, gguf: Make) -> None:
    model = written(tmp_path, gguf())
    eyes = written(tmp_path, projector(), "eyes.gguf")
    seeing = read_metadata([eyes, model])
    assert (seeing.architecture, seeing.parameter_count, seeing.reads) == ("llama", 1024, ("image",))
    assert seeing.projector_size == len(projector())
    keys = {"general.architecture": "clip", "clip.has_audio_encoder": True}
    ears = written(tmp_path, gguf(keys), "ears.mmproj")
    assert read_metadata([model, ears]).reads == ("audio",)
    both = written(tmp_path, gguf({**keys, "clip.has_vision_encoder": True}), "both.gguf")
    assert read_metadata([model, both]).reads == ("image", "audio")
    old = written(tmp_path, gguf({"general.architecture": "clip"}), "old.gguf")
    assert read_metadata([model, old]).reads == ("image",)
    assert (read_metadata([model]).reads, read_metadata([model]).projector_size) == ((), 0)
    assert refusal(eyes) == "eyes.gguf is only a projector, not the model it belongs to."


def test_a_damaged_projector_is_refused_with_its_name(tmp_path: Path, gguf: Make) -> None:
    model = written(tmp_path, gguf())
    cut = written(tmp_path, projector()[:-64], "mmproj-f16.gguf")
    with pytest.raises(JobFailed, match=r"^mmproj-f16.gguf is truncated") as caught:
        read_metadata([model, cut])
    assert caught.value.failure.code == "not_a_model"


def test_layers_without_attention_need_no_cache(tmp_path: Path, gguf: Make) -> None:
    heads = array(4, 3, struct.pack("<3I", 2, 0, 2))
    keys = {"llama.attention.head_count_kv": heads, "llama.attention.key_length": 8}
    metadata = read_metadata([written(tmp_path, gguf(keys))])
    assert metadata.kv_bytes_per_token == 4 * (8 + 16) * 2


def _matrix(name: str, at: int) -> tuple[str, tuple[int, ...], int, int]:
    return (name, (64, 2), 1, at * 256)


def test_the_weights_and_the_cache_of_each_layer_are_read(tmp_path: Path, gguf: Make) -> None:
    tensors = [
        ("token_embd.weight", (64, 16), 1, 0),
        *(_matrix(name, 8 + at) for at, name in enumerate(("blk.0.a", "blk.1.a", "blk.1.b", "output_norm"))),
    ]
    keys = {"llama.feed_forward_length": 256}
    data = b"\1" * 12 * 256
    layers = read_metadata([written(tmp_path, gguf(keys, tensors, data))]).layers
    assert (layers.weights, layers.cache, layers.count) == ((256, 512), (128, 128), 3)
    # There is no matrix for the output: the input's serves for it too.
    assert (layers.input, layers.output, layers.largest) == (2048, 256 + 2048, 256)
    assert (layers.activations, layers.logits) == (4 * (2 * 256 + 4 * 64), 4 * 16)
    own = gguf(keys, [*tensors, _matrix("output.weight", 12)], data + b"\1" * 256)
    assert read_metadata([written(tmp_path, own)]).layers.output == 512


def test_layers_of_all_shards_count_and_only_those_that_the_header_has(tmp_path: Path, gguf: Make) -> None:
    shards = [
        written(tmp_path, gguf({"split.count": 2}, [_matrix(f"blk.{n}.a", 0)], b"\1" * 256), f"m{n}.gguf")
        for n in (0, 1)
    ]
    assert read_metadata(shards).layers.weights == (256, 256)
    for count in (1, 2**31):
        odd = gguf({"llama.block_count": count}, [_matrix("blk.1.a", 0)], b"\1" * 256)
        assert read_metadata([written(tmp_path, odd)]).layers.count == 0


def test_a_model_without_a_vocabulary_of_heads_is_no_reason_to_fail(tmp_path: Path, gguf: Make) -> None:
    keys = {"llama.attention.head_count": None, "llama.attention.head_count_kv": None}
    assert read_metadata([written(tmp_path, gguf(keys))]).kv_bytes_per_token == 0


def test_shards_are_one_model(tmp_path: Path, gguf: Make) -> None:
    split = {"split.count": 2}
    paths = [written(tmp_path, gguf(split), f"m-0000{n}-of-00002.gguf") for n in (1, 2)]
    assert read_metadata(paths).parameter_count == 2048
    assert "2 files, of which 1" in refusal(paths[0])


def _with_twin(make: Make) -> bytes:
    data: bytes = make({"twin.a": 1, "twin.b": 1})
    return data.replace(b"twin.b", b"twin.a")


HOSTILE: dict[str, tuple[Callable[[Make], bytes], str]] = {
    "empty": (lambda _: b"", "empty"),
    "text": (lambda _: b"hello, I am a text", "not a model"),
    "zip": (lambda _: b"PK\x03\x04" + b"\0" * 100, "zip archive"),
    "git lfs pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "web page": (lambda _: b"<!DOCTYPE html><html>", "web page"),
    "magic only": (lambda _: b"GGUF", "truncated"),
    "version 1": (lambda g: g()[:4] + struct.pack("<I", 1) + g()[8:], "version 1"),
    "big endian": (lambda g: g()[:4] + struct.pack(">I", 3) + g()[8:], "big-endian"),
    "billions of keys": (lambda _: b"GGUF" + struct.pack("<IQQ", 3, 1, 2**63), "more than fit"),
    "billions of tensors": (
        lambda _: b"GGUF" + struct.pack("<IQQ", 3, 2**62, 1) + b"\0" * 999,
        "more than fit",
    ),
    "a key as long as the sky": (
        lambda _: b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**60) + b"\0" * 99,
        "the limit is",
    ),
    "an array of everything": (lambda g: g({"a": array(0, 2**62)}), "length"),
    "an array of strings without end": (lambda g: g({"a": array(8, 2**40)}), "more than fit"),
    "a string that is longer than the file": (
        lambda g: g({"a": array(8, 1, struct.pack("<Q", 2**50))}),
        "truncated",
    ),
    "arrays in arrays in arrays": (
        lambda g: g({"a": array(9, 1, struct.pack("<IQ", 9, 1) * 50 + struct.pack("<IQ", 0, 0))}),
        "an invalid type",
    ),
    "an unknown type": (lambda g: g({"a": struct.pack("<I", 77)}), "unknown type 77"),
    "a key twice": (_with_twin, "twice"),
    "no architecture": (lambda g: g({"general.architecture": None}), "names no architecture"),
    "no weights": (lambda g: g(tensors=[]), "no weights"),
    "odd alignment": (lambda g: g({"general.alignment": 31}), "alignment"),
    "huge alignment": (lambda g: g({"general.alignment": 2**30}), "alignment"),
    "many dimensions": (lambda g: g(tensors=[("t", (1,) * 9, 0, 0)]), "9 dimensions"),
    "a tensor larger than memory": (lambda g: g(tensors=[("t", (2**40, 2**40), 0, 0)]), "too large for any"),
    "overlapping tensors": (
        lambda g: g(tensors=[("a", (64, 8), 1, 0), ("b", (64, 8), 1, 32)]),
        "overlap",
    ),
    "weights cut short": (lambda g: g()[:-1], "truncated"),
    "a tensor far away": (lambda g: g(tensors=[("t", (1,), 0, 2**60)]), "truncated"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_gguf_is_refused_with_a_sentence(name: str, tmp_path: Path, gguf: Make) -> None:
    make, reason = HOSTILE[name]
    path = written(tmp_path, make(gguf))
    began = time.process_time()
    assert reason in refusal(path)
    assert time.process_time() - began < 1.0


def test_a_header_of_many_texts_is_read_or_refused_without_delaying_other_threads(
    tmp_path: Path, gguf: Make
) -> None:
    texts = 2_400_000
    path = written(tmp_path, gguf({"a": array(8, texts, struct.pack("<Q", 0) * texts)}))
    beats, over = 0, threading.Event()

    def beat() -> None:
        nonlocal beats
        while not over.wait(0.001):
            beats += 1

    thread = threading.Thread(target=beat)
    thread.start()
    began = time.thread_time()
    read_header(path)
    took = time.thread_time() - began
    over.set()
    thread.join()
    assert took < 2.0
    assert beats > 20
    more = written(tmp_path, gguf({"a": array(8, 8_000_000, struct.pack("<Q", 0) * 8_000_000)}), "more.gguf")
    assert "an array of 8000000 items, more than fit" in refusal(more)


def test_numbers_that_nothing_could_hold_are_as_good_as_unknown(
    tmp_path: Path, gguf: Make, safetensors: Make
) -> None:
    endless = struct.pack("<IQ", 10, 2**64 - 1)
    shape = [(f"t{n}", (2**31, 2**31), 999, 0) for n in range(8)]
    keys = {"llama.context_length": endless, "llama.block_count": endless}
    said = read_metadata([written(tmp_path, gguf(keys, tensors=shape, data=b"x" * 64))])
    assert (said.parameter_count, said.parameters) == (0, "")
    assert (said.context_length, said.kv_bytes_per_token) == (0, 0)
    many = read_metadata([written(tmp_path, gguf({f"k{n}": 1 for n in range(5_000)}))])
    assert len(many.raw) == 2_000
    header = json.dumps({"a": {"dtype": "Q9", "shape": [2**62] * 16, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "z.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    config = {"max_position_embeddings": 2**39, "num_hidden_layers": 2**39, "hidden_size": 2**39}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1}))
    said = read_metadata([tmp_path / "z.safetensors", tmp_path / "config.json"])
    assert (said.parameter_count, said.context_length, said.kv_bytes_per_token) == (0, 0, 0)


def test_strings_of_every_length_are_skipped(tmp_path: Path, gguf: Make) -> None:
    rng = random.Random(7)
    texts = [rng.randbytes(rng.choice([0, 1, 7, 4_096, 262_136, 262_137, 600_000])) for _ in range(60)]
    data = b"".join(struct.pack("<Q", len(one)) + one for one in texts)
    header = read_header(written(tmp_path, gguf({"a": array(8, len(texts), data), "b": "end"})))
    assert header.values["b"] == "end"


def test_hostile_headers_are_read_in_bounded_memory(tmp_path: Path, gguf: Make, safetensors: Make) -> None:
    """All of them again, and some large ones, in a process that may have 200 MiB."""
    for name, (make, _) in HOSTILE.items():
        written(tmp_path, make(gguf), f"{name.replace(' ', '-')}.gguf")
    # A million empty strings, and a header of sixteen MiB that is nothing but small objects.
    written(tmp_path, gguf({"a": array(8, 1_000_000, struct.pack("<Q", 0) * 1_000_000)}), "strings.gguf")
    many = b'{"":{},' * 2_300_000 + b'"x":{}' + b"}" * 3
    (tmp_path / "deep.safetensors").write_bytes(struct.pack("<Q", len(many)) + many)
    deep = b'{"a":' * 190_000 + b"1" + b"}" * 190_000
    (tmp_path / "nested.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep)
    (tmp_path / "config.json").write_text("{}")
    # Texts and keys without end, each as long as it may be; as many tensors as there may be.
    text, key = b"x" * (2 * 2**20), "k" * 65_000
    texts = {f"t{n}": struct.pack("<IQ", 8, len(text)) + text for n in range(60)}
    written(tmp_path, gguf(texts), "texts.gguf")
    written(tmp_path, gguf({f"{key}{n}": 1 for n in range(100)}), "keys.gguf")
    tensors = [("t", (1,), 0, 32 * n) for n in range(60_000)]
    written(tmp_path, gguf(tensors=tensors, data=b"\0" * 32 * 60_000), "tensors.gguf")
    one = b'"%06d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}'
    header = b"{" + b",".join(one % (n, n, n + 1) for n in range(120_000)) + b"}"
    (tmp_path / "entries.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 120_000)
    # A shape of a million numbers, whose product would take minutes.
    shape = (
        b'{"a":{"dtype":"U8","shape":[' + b",".join([b"%d" % (2**62)] * 700_000) + b'],"data_offsets":[0,1]}}'
    )
    (tmp_path / "shape.safetensors").write_bytes(struct.pack("<Q", len(shape)) + shape + b"\0")
    program = """
import resource, sys, pathlib
from greenroom.runner.errors import JobFailed
from greenroom.runner.models.metadata import read_metadata
from greenroom.runner.models import gguf, safetensors
limit = 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.glob("*.gguf")) + sorted(folder.glob("*.safetensors")):
    try:
        read_metadata([path, folder / "config.json"])
    except JobFailed as error:
        print(path.name, error.failure.message)
    else:
        print(path.name, "is fine")
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    fine = [name.split()[0] for name in done.stdout.splitlines() if name.endswith(" is fine")]
    assert fine == ["strings.gguf", "tensors.gguf", "texts.gguf", "entries.safetensors"]
    assert done.stdout.count("\n") == len(HOSTILE) + 8
    # The other tests of this run have had children too.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 30


def test_damaged_headers_never_end_in_anything_but_a_sentence(tmp_path: Path, gguf: Make) -> None:
    good = gguf({"a.list": array(8, 3, (struct.pack("<Q", 2) + b"hi") * 3)})
    rng = random.Random(20240607)
    for _ in range(600):
        data = bytearray(good[: rng.choice([len(good), rng.randrange(len(good))])])
        for _ in range(rng.randrange(1, 4)):
            if data:
                data[rng.randrange(min(len(data), 500))] = rng.choice([0, 1, 255, rng.randrange(256)])
        path = written(tmp_path, bytes(data))
        with contextlib.suppress(JobFailed):
            read_metadata([path])


def test_a_safetensors_folder_is_read(tmp_path: Path, model_folder: Callable[..., Path]) -> None:
    metadata = read_metadata(sorted(model_folder(tmp_path / "m").iterdir()))
    assert metadata.format == "safetensors"
    assert (metadata.architecture, metadata.quantization) == ("llama", "F16")
    assert (metadata.context_length, metadata.parameter_count) == (512, 1024)
    assert metadata.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert metadata.chat_template


def test_mlx_quantisation_counts_what_the_words_stand_for(
    tmp_path: Path, model_folder: Callable[..., Path], safetensors: Make
) -> None:
    folder = model_folder(tmp_path / "m", quantization={"group_size": 32, "bits": 4})
    packed = {
        "a.weight": ("U32", [8, 16], 512),
        "a.scales": ("F16", [8, 4], 64),
        "a.biases": ("F16", [8, 4], 64),
        "norm.weight": ("F16", [128], 256),
    }
    (folder / "model.safetensors").write_bytes(safetensors(packed))
    metadata = read_metadata(sorted(folder.iterdir()))
    assert (metadata.format, metadata.quantization) == ("safetensors-mlx", "4bit")
    assert metadata.parameter_count == 8 * 128 + 128


def test_other_quantisations_are_not_taken_for_mlx(tmp_path: Path, model_folder: Callable[..., Path]) -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    metadata = read_metadata(sorted(model_folder(tmp_path / "m", quantization_config=settings).iterdir()))
    assert (metadata.format, metadata.quantization) == ("safetensors", "gptq-4bit")


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "truncated"),
        (b"\x01\x02", "truncated"),
        (struct.pack("<Q", 2**63), "not a safetensors file"),
        (struct.pack("<Q", 4) + b"nope", "not a valid JSON"),
        (struct.pack("<Q", 2) + b"{}", "no weights"),
        (struct.pack("<Q", 8) + b'{"a":[1]', "not a safetensors file"),
        (struct.pack("<Q", 7) + b'{"a":1}', "not a safetensors file"),
    ],
)
def test_a_hostile_safetensors_file_is_refused_with_a_sentence(
    head: bytes, reason: str, tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(head)
    with pytest.raises(JobFailed, match=reason):
        read_metadata(sorted(folder.iterdir()))


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype":"F16","shape":[16,64],"data_offsets":[0,2047]}',
        '{"dtype":"F16","shape":[16,64],"data_offsets":[2048,0]}',
        '{"dtype":"F16","shape":[-16,-64],"data_offsets":[0,2048]}',
        '{"dtype":"F16","shape":[16,64],"data_offsets":[0,2048]},"b":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}',
        '{"dtype":"F16","shape":[99999999999,99999999999],"data_offsets":[0,2048]}',
    ],
)
def test_tensors_that_lie_about_their_place_are_refused(
    entry: str, tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    folder = model_folder(tmp_path / "m")
    header = f'{{"a":{entry}}}'.encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 2048)
    with pytest.raises(JobFailed, match="damaged"):
        read_metadata(sorted(folder.iterdir()))


@pytest.mark.parametrize("config", [None, "[]", "{", "\x00", '{"text_config": 7, "num_hidden_layers": "x"}'])
def test_any_config_is_read_or_refused(
    config: str | None, tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    if config is not None and config.startswith('{"'):
        assert read_metadata(sorted(folder.iterdir())).kv_bytes_per_token == 0
        return
    with pytest.raises(JobFailed, match=r"config\.json"):
        read_metadata(sorted(folder.iterdir()))


def test_counts_are_written_as_people_say_them() -> None:
    assert [count_text(n) for n in (7, 1_500, 134_515_008, 7_240_000_000, 10**12)] == [
        "7",
        "1.50K",
        "134.52M",
        "7.24B",
        "1.00T",
    ]
