"""Vocabularies: text -> token ids and back. Bytes, byte-level BPE (tokenizers) and SentencePiece.

    vocabulary = train_bpe(texts, 4096)
    vocabulary.save(folder);  vocabulary = load(folder)

A vocabulary adds no special tokens by itself, and text never turns into one: a document that spells "<eos>"
gets the ids of those five characters. Needs no TensorFlow.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jaxpt.core.names import nearest_error
from jaxpt.data.documents import DataError

if TYPE_CHECKING:
    import sentencepiece
    import tokenizers

MANIFEST = "vocabulary.json"
# The usual spellings, tried in this order where no tokenizer_config.json says which token has which role.
EOS_NAMES = (
    "<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "[EOS]", "[SEP]"
)  # fmt: skip
BOS_NAMES = ("<bos>", "<s>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]", "[CLS]")
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>")
SENTENCE_BYTES = 8192  # longer lines are cut for SentencePiece's trainer, which would drop them


class Vocabulary(Protocol):
    """What every vocabulary can do. Ids are 0 .. size - 1; bos_id and pad_id fall back to eos_id."""

    size: int
    pad_id: int
    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, in the library's threads."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out.

        Raises:
          ValueError: an id outside 0 .. size - 1.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes vocabulary.json, and the model file where there is one, for `load`."""
        ...


class ByteVocabulary:
    """UTF-8 bytes: pad 0, eos 1, bos 2, byte b is b + 3 (SeqIO's byte vocabulary, its id 2 read as BOS)."""

    size, pad_id, eos_id, bos_id = 259, 0, 1, 2

    def encode(self, text: str) -> list[int]:
        return [byte + 3 for byte in text.encode("utf-8")]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        _check_range(ids, self.size)
        return bytes(i - 3 for i in ids if i >= 3).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        _save(self, folder, "bytes", b"", "")


class HFVocabulary:
    """Any Hugging Face `tokenizer.json`.

    Args:
      tokenizer: a `tokenizers.Tokenizer`; its padding and truncation are switched off.
      roles: token strings by "eos", "bos", "pad"; the usual spellings are looked for where a role is absent.

    Raises:
      DataError: no end-of-text token can be found, or a named one is not in the vocabulary.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, roles: dict[str, str] | None = None) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # in text, they are text
        self._tokenizer = tokenizer
        self._roles = roles or {}
        ids = tokenizer.get_vocab(with_added_tokens=True)
        self.size: int = max(ids.values(), default=-1) + 1  # not the count: some files leave gaps
        eos = self._role("eos", EOS_NAMES, ids)
        if eos is None:
            known = ", ".join(EOS_NAMES)
            raise DataError(
                f"the tokenizer has no end-of-text token (looked for {known}); name it as eos_token in "
                "a tokenizer_config.json beside it"
            )
        self.eos_id: int = eos
        bos, pad = self._role("bos", BOS_NAMES, ids), self._role("pad", PAD_NAMES, ids)
        self.bos_id: int = eos if bos is None else bos
        self.pad_id: int = eos if pad is None else pad

    def _role(self, role: str, names: tuple[str, ...], ids: dict[str, int]) -> int | None:
        named = self._roles.get(role)
        if named is not None and named not in ids:
            raise DataError(f"the {role} token {named!r} is not in the tokenizer's {len(ids)} tokens")
        return next((ids[name] for name in ((named,) if named is not None else names) if name in ids), None)

    def token_id(self, token: str) -> int | None:
        """The id of a token by its spelling, such as "<|im_end|>"."""
        return self._tokenizer.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        _check_range(ids, self.size)
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        _save(
            self,
            folder,
            "tokenizers",
            self._tokenizer.to_str().encode("utf-8"),
            "tokenizer.json",
            self._roles,
        )


class SentencePieceVocabulary:
    """A SentencePiece model, given as its serialised bytes.

    Raises:
      DataError: the bytes are not a model, or the model has no EOS.
    """

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._model = model
        self._processor: sentencepiece.SentencePieceProcessor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(model) and self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise DataError(f"not a SentencePiece model: {error}") from None
        if not loaded:
            raise DataError("not a SentencePiece model: it is empty")
        self.size: int = self._processor.get_piece_size()
        self.eos_id: int = self._processor.eos_id()
        if self.eos_id < 0:
            raise DataError("the SentencePiece model has no EOS piece; train one with eos_id >= 0")
        bos, pad = self._processor.bos_id(), self._processor.pad_id()
        self.bos_id: int = bos if bos >= 0 else self.eos_id
        self.pad_id: int = pad if pad >= 0 else self.eos_id

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text, out_type=int)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, out_type=int)

    def decode(self, ids: Sequence[int]) -> str:
        _check_range(ids, self.size)
        return self._processor.decode([int(i) for i in ids])

    def save(self, folder: Path) -> None:
        _save(self, folder, "sentencepiece", self._model, "sentencepiece.model")


def train_bpe(texts: Iterable[str], size: int) -> HFVocabulary:
    """Byte-level BPE of at most `size` tokens: 3 special ones, 256 bytes, merges. Every string round-trips.

    Raises:
      ValueError: a size below 259.
      DataError: no text.
    """
    import tokenizers

    special = ["<pad>", "<eos>", "<bos>"]
    if size < 256 + len(special):
        raise ValueError(f"byte-level BPE needs a size of at least {256 + len(special)}, got {size}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_nonempty(texts), trainer)
    return HFVocabulary(tokenizer)


def train_sentencepiece(texts: Iterable[str], size: int) -> SentencePieceVocabulary:
    """A unigram SentencePiece of at most `size` pieces, with byte fallback and text left as it is.

    Round trips are exact but for U+2581, SentencePiece's own sign for a space. The number of threads is fixed
    because the order in which the trainer adds floats follows from it: the same texts give the same model.

    Raises:
      ValueError: a size below 300.
      DataError: no text, or too little for SentencePiece to train on.
    """
    import sentencepiece

    if size < 300:
        raise ValueError(f"SentencePiece with byte fallback needs a size of at least 300, got {size}")
    sentences = list(_sentences(_nonempty(texts)))  # read here: the trainer swallows what an iterator raises
    model = _Sink()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model,
            vocab_size=size, model_type="unigram",
            byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False, num_threads=4,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, hard_vocab_limit=False,
            max_sentence_length=SENTENCE_BYTES, pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise DataError(f"SentencePiece could not train {size} pieces on these texts: {error}") from None
    return SentencePieceVocabulary(bytes(model.data))


def load(folder_or_spec: str | Path) -> Vocabulary:
    """A vocabulary from "bytes", a folder written by `save`, a `tokenizer.json` or a SentencePiece `*.model`.

    A `tokenizer_config.json` beside a tokenizer.json says which tokens are EOS, BOS and PAD.

    Raises:
      ValueError: neither a known spec nor an existing path.
      DataError: a missing, corrupt or changed file, named.
    """
    path = Path(folder_or_spec)
    if str(folder_or_spec) == "bytes":
        return ByteVocabulary()
    if path.is_dir():
        return _load_folder(path)
    if path.is_file() and path.suffix == ".model":
        return _named(path, SentencePieceVocabulary, path.read_bytes())
    if path.is_file() and path.suffix == ".json":
        return _named(path, _tokenizer, path.read_bytes(), _configured_roles(path))
    raise nearest_error("vocabulary", str(folder_or_spec), ("bytes", "a folder", "*.json", "*.model"))


def _load_folder(folder: Path) -> Vocabulary:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} is not a saved vocabulary: it has no {MANIFEST}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind, roles, digest = manifest["kind"], manifest["roles"], manifest["sha256"]
        model = (folder / manifest["model"]).read_bytes() if manifest["model"] else b""
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}, named in {path}, is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is corrupt: {error!r}; save the vocabulary again") from None
    if hashlib.sha256(model).hexdigest() != digest:
        raise DataError(f"{folder / manifest['model']} has changed since it was saved (sha256); save it again")
    if kind == "bytes":
        return ByteVocabulary()
    if kind == "sentencepiece":
        return _named(folder, SentencePieceVocabulary, model)
    if kind == "tokenizers":
        return _named(folder, _tokenizer, model, roles)
    raise DataError(
        f"{path}: " + str(nearest_error("kind of vocabulary", kind, ("bytes", "tokenizers", "sentencepiece")))
    )


def _named(path: Path, make: Any, *arguments: Any) -> Any:
    """`make(*arguments)`, its errors preceded by the path."""
    try:
        return make(*arguments)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _tokenizer(model: bytes, roles: dict[str, str]) -> HFVocabulary:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(model.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"not a Hugging Face tokenizer file: {error}") from None
    return HFVocabulary(tokenizer, roles)


def _configured_roles(path: Path) -> dict[str, str]:
    """EOS, BOS and PAD of the tokenizer_config.json beside a tokenizer.json; empty without one."""
    config_path = path.with_name("tokenizer_config.json")
    if not config_path.is_file():
        return {}
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        tokens = {role: config.get(f"{role}_token") for role in ("eos", "bos", "pad")}
    except (ValueError, AttributeError) as error:
        raise DataError(f"{config_path} is corrupt: {error}") from None
    return {role: t["content"] if isinstance(t, dict) else t for role, t in tokens.items() if t}


def _save(
    vocabulary: Vocabulary,
    folder: Path,
    kind: str,
    model: bytes,
    name: str,
    roles: dict[str, str] | None = None,
) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if name:
        (folder / name).write_bytes(model)
    manifest = {
        "kind": kind, "model": name, "sha256": hashlib.sha256(model).hexdigest(), "size": vocabulary.size,
        "pad_id": vocabulary.pad_id, "bos_id": vocabulary.bos_id, "eos_id": vocabulary.eos_id,
        "roles": roles or {},
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _check_range(ids: Sequence[int], size: int) -> None:
    bad = next((int(i) for i in ids if not 0 <= i < size), None)
    if bad is not None:
        raise ValueError(f"token id {bad} is out of range: this vocabulary has ids 0 to {size - 1}")


def _nonempty(texts: Iterable[str]) -> Iterator[str]:
    """The texts, after a look at whether there are any."""
    rest = iter(texts)
    first = next((text for text in rest if text.strip()), None)
    if first is None:
        raise DataError("a vocabulary cannot be trained on no text; the corpus is empty")
    return itertools.chain([first], rest)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines, long ones in pieces (a character is at most 4 bytes)."""
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), SENTENCE_BYTES // 4):
                yield line[start : start + SENTENCE_BYTES // 4]


class _Sink:
    """The file object that SentencePiece's trainer writes to."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, part: bytes) -> None:
        self.data += part
