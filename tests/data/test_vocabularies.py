"""Round trips, roles, storage and bad input of every kind of vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt.data import vocabularies
from jaxpt.data.documents import DataError
from jaxpt.data.vocabularies import (
    ByteVocabulary,
    HFVocabulary,
    train_bpe,
    train_sentencepiece,
)

TEXTS = [Path(vocabularies.__file__).read_text(encoding="utf-8"), "Größe, naïve; 日本語 and emoji 🙂.\n"] * 3
HARD = [
    "",
    " ",
    "\n\n  x\t\r\n",
    "<eos> </s> <pad><bos>",
    "Größe 日本語 🙂 \u0000 \ufeff",
    "a" * 5000,
    "  two  spaces ",
]
# Text that can be encoded; U+2581 is SentencePiece's own sign for a space.
UNICODE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60)


@pytest.fixture(scope="module")
def trained():
    return {"bytes": ByteVocabulary(), "bpe": train_bpe(TEXTS, 600), "sp": train_sentencepiece(TEXTS, 600)}


KINDS = pytest.mark.parametrize("kind", ["bytes", "bpe", "sp"])


@KINDS
def test_round_trips_ids_and_batches(trained, kind):
    vocabulary = trained[kind]
    specials = {vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id}
    assert len(specials) == 3
    for text in HARD + TEXTS[:2]:
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert not specials & set(ids), f"{text!r} became a special token"
        assert all(0 <= i < vocabulary.size for i in ids)
    assert vocabulary.encode_batch(HARD) == [vocabulary.encode(text) for text in HARD]
    assert vocabulary.encode_batch([]) == []
    assert vocabulary.decode([vocabulary.bos_id, *vocabulary.encode("ab"), vocabulary.eos_id]) == "ab"


@KINDS
@settings(deadline=None, max_examples=150)
@given(text=UNICODE)
def test_any_text_round_trips(trained, kind, text):
    vocabulary = trained[kind]
    assert vocabulary.decode(vocabulary.encode(text)) == text


@KINDS
def test_saved_and_loaded(trained, kind, tmp_path):
    vocabulary = trained[kind]
    vocabulary.save(tmp_path / "v")
    loaded = vocabularies.load(tmp_path / "v")
    for name in ("size", "pad_id", "bos_id", "eos_id"):
        assert getattr(loaded, name) == getattr(vocabulary, name)
    assert loaded.encode_batch(TEXTS) == vocabulary.encode_batch(TEXTS)


@pytest.mark.parametrize("kind", ["bpe", "sp"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "manifest"])
def test_damaged_files_are_named(trained, kind, damage, tmp_path):
    trained[kind].save(tmp_path)
    name = {"bpe": "tokenizer.json", "sp": "sentencepiece.model"}[kind] if damage != "manifest" else "vocabulary.json"
    path = tmp_path / name
    raw = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(raw[: len(raw) // 2] if damage != "changed" else raw[:-9] + b"x" + raw[-8:])
    with pytest.raises(DataError, match=name):
        vocabularies.load(tmp_path)


def test_byte_ids_are_fixed():
    assert ByteVocabulary().encode("aé") == [100, 198, 172]
    assert (ByteVocabulary.size, ByteVocabulary.pad_id, ByteVocabulary.eos_id, ByteVocabulary.bos_id) == (
        259,
        0,
        1,
        2,
    )
    assert isinstance(vocabularies.load("bytes"), ByteVocabulary)
    assert ByteVocabulary().decode([0xFF + 3]) == "\ufffd"


@KINDS
def test_ids_out_of_range(trained, kind):
    size = trained[kind].size
    for bad in (size, -1):
        with pytest.raises(ValueError, match=f"token id {bad} is out of range.*{size - 1}"):
            trained[kind].decode([5, bad])


def test_training_is_deterministic_and_compresses(trained, tmp_path):
    for name, train in (("bpe", train_bpe), ("sp", train_sentencepiece)):
        again = train(iter(TEXTS), 600)
        again.save(tmp_path / "a")
        trained[name].save(tmp_path / "b")
        assert (tmp_path / "a/vocabulary.json").read_text() == (tmp_path / "b/vocabulary.json").read_text()
        assert 500 < again.size <= 600
        assert len(again.encode(TEXTS[0])) < 0.6 * len(TEXTS[0])


@pytest.mark.parametrize("train", [train_bpe, train_sentencepiece])
def test_training_bad_input(train):
    with pytest.raises(DataError, match="no text"):
        train([], 600)
    with pytest.raises(DataError, match="no text"):
        train(["", " \n"], 600)
    with pytest.raises(ValueError, match="at least"):
        train(TEXTS, 10)


def _word_level(tokens: list[str]) -> dict:
    return {
        "version": "1.0",
        "truncation": {"max_length": 3, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
        "padding": None, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
        "decoder": None, "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {t: 2 * i for i, t in enumerate(tokens)}, "unk_token": "?"},
    }  # fmt: skip


def test_a_hugging_face_file_with_gaps_truncation_and_roles(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(_word_level(["?", "cat", "dog", "STOP", "</s>"])))
    plain = vocabularies.load(path)
    assert isinstance(plain, HFVocabulary)
    assert (plain.size, plain.eos_id, plain.bos_id, plain.pad_id) == (
        9,
        8,
        8,
        8,
    )  # bos and pad fall back to eos
    assert plain.encode("cat dog cat dog cat") == [
        2,
        4,
        2,
        4,
        2,
    ]  # the file's truncation to 3 is switched off
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "STOP"}, "pad_token": "?"}))
    configured = vocabularies.load(str(path))
    assert (configured.eos_id, configured.pad_id) == (6, 0)
    configured.save(tmp_path / "saved")
    assert vocabularies.load(tmp_path / "saved").eos_id == 6


def test_unusable_models_are_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(_word_level(["?", "cat"])))
    with pytest.raises(DataError, match="no end-of-text token.*tokenizer_config.json"):
        vocabularies.load(path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "END"}')
    with pytest.raises(DataError, match=r"tokenizer.json: the eos token 'END' is not"):
        vocabularies.load(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"tokenizer.json: not a Hugging Face tokenizer"):
        vocabularies.load(path)
    for content in (b"", b"not a model"):
        (tmp_path / "m.model").write_bytes(content)
        with pytest.raises(DataError, match=r"m.model: not a SentencePiece model"):
            vocabularies.load(tmp_path / "m.model")


def test_unknown_specs(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'bytes'"):
        vocabularies.load("byte")
    with pytest.raises(DataError, match="has no vocabulary.json"):
        vocabularies.load(tmp_path)
