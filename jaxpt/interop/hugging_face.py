"""Hugging Face model folders in and out: config.json and safetensors, of the architectures in `FAMILIES`.

    model = hugging_face.load(folder)                              # model.params, model.cfg, model.settings
    logits = decoder.apply(model.params, ids, model.cfg)
    hugging_face.save(folder, params, cfg, vocabulary=vocabulary)  # what transformers' from_pretrained reads

Nothing in a folder is executed, whatever it asks for. Export turns matrices of any form into dense ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxpt.core import trees
from jaxpt.core.files import write_json
from jaxpt.core.names import nearest_error
from jaxpt.core.types import Params
from jaxpt.data.documents import DataError
from jaxpt.data.vocabularies import MANIFEST, ByteVocabulary, HFVocabulary, Vocabulary
from jaxpt.data.vocabularies import load as load_any
from jaxpt.interop.families import FAMILIES
from jaxpt.interop.families.base import Config, Family
from jaxpt.interop.names import Renamed, from_state, to_state
from jaxpt.interop.safetensors_files import SafetensorsState, open_folder, write_folder
from jaxpt.interop.settings import Settings, read_json

CONFIG = "config.json"
FORMATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
SHARD_BYTES = 5 * 10**9
ROLES = ("bos", "eos", "pad")


class Model(NamedTuple):
    """A configuration, its parameters, and the config.json they came with."""

    cfg: Config
    params: Params
    settings: Mapping[str, Any]


def load(folder: str | Path, *, dtype: str | None = None, mesh: Mesh | None = None) -> Model:
    """A model from a folder.

    Args:
      dtype: number format of the parameters; by default the file's, float32 where it mixes several.
      mesh: where the parameters go, each by its logical axes; the default device if None.

    Raises:
      DataError: something is missing, corrupt, hostile, or of an architecture that we do not have; with the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give one with {CONFIG} and model.safetensors")
    settings = Settings(read_json(folder / CONFIG), str(folder / CONFIG))
    family = _family(settings)
    with open_folder(folder) as stored:
        state = Renamed(stored, family.aliases)
        try:
            cfg = family.read(settings, set(state.names))
            cfg = dataclasses.replace(cfg, param_dtype=dtype or _stored_dtype(stored, folder))
            spec = family.spec(cfg)
        except DataError:
            raise
        except ValueError as error:  # sizes that fit no model
            raise DataError(f"{settings.source}: {error}") from None
        extra: dict[str, Any] = {"prefix": family.prefix, "ignored": family.ignored, "source": str(folder)}
        params = from_state(state, spec, family.pieces(cfg), **extra, mesh=mesh)
    return Model(cfg, params, settings.values)


def save(
    folder: str | Path,
    params: Params,
    cfg: Config,
    *,
    family: str | None = None,
    vocabulary: Vocabulary | None = None,
    settings: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that `load` and `transformers` read.

    Args:
      family: a key of `FAMILIES`; the first that can express `cfg` if None.
      vocabulary: written beside the model, for `load_vocabulary` and (unless it is SentencePiece) AutoTokenizer.
      settings: further keys of config.json, such as those that `load` found.
      shard_bytes: larger models are split into files of about this size.

    Raises:
      ValueError: no family can express the model, or it holds arrays that the family has no name for.
    """
    chosen, described = _describe(cfg, family)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bare = chosen.prefix if chosen.headless(cfg) else ""
    write_folder(folder, to_state(params, chosen.pieces(cfg), bare), shard_bytes)
    formats = sorted({str(x.dtype) for _, x in trees.leaves_with_path(params)})
    dtype = (
        {"dtype": formats[0], "torch_dtype": formats[0]} if len(formats) == 1 else {}
    )  # names of transformers 5 and 4
    ids = {} if vocabulary is None else _special_ids(vocabulary)
    write_json(folder / CONFIG, {**chosen.defaults, **(settings or {}), **dtype, **ids, **described})
    if vocabulary is not None:
        _save_tokenizer(folder, vocabulary)


def load_vocabulary(folder: str | Path) -> Vocabulary:
    """The tokenizer in a model folder: one that `save` wrote, a tokenizer.json, or a SentencePiece tokenizer.model.

    Raises:
      DataError: there is none, or it is corrupt.
    """
    folder = Path(folder)
    for name in (MANIFEST, "tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return load_any(folder if name == MANIFEST else folder / name)
    raise DataError(f"{folder} has no tokenizer: none of {MANIFEST}, tokenizer.json, tokenizer.model")


def _family(settings: Settings) -> Family:
    name = settings.values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise DataError(f"{settings.source}: {nearest_error('model_type', str(name)[:80], FAMILIES)}")
    settings.demand({"quantization_config": (None,)})
    return FAMILIES[name]


def _stored_dtype(state: SafetensorsState, folder: Path) -> str:
    """The one floating format of all tensors, or float32."""
    found = {state.dtype(name) for name in state.names}
    unknown = found - {*FORMATS, "I64", "U8", "BOOL"}  # the latter are buffers that older files carry
    if unknown:
        raise DataError(f"{folder} stores {sorted(unknown)}; only {sorted(FORMATS)} are read")
    floating = found & set(FORMATS)
    return FORMATS[floating.pop()] if len(floating) == 1 else "float32"


def _describe(cfg: Config, family: str | None) -> tuple[Family, dict[str, Any]]:
    """The family to write, and its config.json."""
    if family is not None and family not in FAMILIES:
        raise nearest_error("family", family, FAMILIES)
    reasons = []
    for candidate in FAMILIES.values() if family is None else [FAMILIES[family]]:
        try:
            if not isinstance(cfg, candidate.config):
                raise ValueError(f"{candidate.model_type} is another kind of model than {type(cfg).__module__}")
            described = candidate.write(cfg)
        except ValueError as error:
            reasons.append(str(error))
        else:
            stddev = {} if cfg.initializer_stddev is None else {"initializer_range": cfg.initializer_stddev}
            return candidate, {"model_type": candidate.model_type, **stddev, **described}
    raise ValueError("no family can express this model: " + "; ".join(reasons))


def _special_ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {f"{role}_token_id": getattr(vocabulary, f"{role}_id") for role in ROLES}


def _save_tokenizer(folder: Path, vocabulary: Vocabulary) -> None:
    """The vocabulary for `load_vocabulary`, and what transformers' AutoTokenizer needs beside it."""
    vocabulary.save(folder)
    if isinstance(vocabulary, ByteVocabulary):
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0})
    elif isinstance(vocabulary, HFVocabulary):
        added = read_json(folder / "tokenizer.json").get("added_tokens", [])
        text = {token["id"]: token["content"] for token in added}
        tokens = {f"{role}_token": text.get(getattr(vocabulary, f"{role}_id")) for role in ROLES}
        known = {role: token for role, token in tokens.items() if token is not None}
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **known})
