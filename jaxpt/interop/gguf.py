"""GGUF models of the LLaMA architecture: configuration, dequantised weights, tokenizer.

    model = gguf.load("SmolLM2-135M-Instruct.Q4_1.gguf")         # model.params, model.cfg, model.settings
    vocabulary = gguf.load_vocabulary("SmolLM2-135M-Instruct.Q4_1.gguf")

The format stores a head's rotary pairs side by side, we store them half a head apart: rows of queries and keys are put
in our order (`names.adjacent_pairs`). The chat template in a file is text and is never executed; see `jaxpt.interop.chat`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxpt.data.documents import DataError
from jaxpt.data.vocabularies import HFVocabulary
from jaxpt.interop.gguf_file import GGUF, open_file
from jaxpt.interop.hugging_face import Model
from jaxpt.interop.names import Piece, adjacent_pairs, from_state
from jaxpt.interop.settings import Settings
from jaxpt.models import decoder

CONTROL = 3  # the token type of special tokens
LINEARS = {
    "attn_v": "attention/value",
    "attn_output": "attention/out",
    "ffn_gate": "mlp/gate",
    "ffn_up": "mlp/up",
    "ffn_down": "mlp/down",
}


def load(path: str | Path, *, dtype: str = "float32", mesh: Mesh | None = None) -> Model:
    """A model from a file.

    Args:
      dtype: number format of the parameters.
      mesh: where the parameters go, each by its logical axes; the default device if None.

    Raises:
      DataError: the file is corrupt, truncated, hostile, or of an architecture or number format that is not read.
    """
    file = open_file(path)
    cfg = _config(file, dtype)
    try:
        spec = decoder.spec(cfg)
    except ValueError as error:  # sizes that fit no model
        raise DataError(f"{path}: {error}") from None
    return Model(cfg, from_state(file, spec, _pieces(cfg), source=str(path), mesh=mesh), file.metadata)


def load_vocabulary(path: str | Path) -> HFVocabulary:
    """The byte-level BPE of a file. Text never turns into one of its control tokens.

    Raises:
      DataError: the file is corrupt, or its tokenizer of a kind that is not read.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    file = open_file(path)
    settings = Settings(file.metadata, str(path))
    settings.demand({"tokenizer.ggml.model": ("gpt2",), "tokenizer.ggml.add_space_prefix": (False,)})
    split = settings.choice("tokenizer.ggml.pre", PRE_TOKENIZERS)
    tokens, merges, kinds = (_list(file, key) for key in ("tokens", "merges", "token_type"))
    pairs = [(left, right) for left, space, right in (str(merge).partition(" ") for merge in merges) if space]
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens) or len(pairs) != len(merges):
        raise DataError(f"{path}: tokens, their types and the merges do not fit together")
    roles = {role: tokens[_token_id(file, role, len(tokens))] for role in ("bos", "eos", "pad")}
    try:
        tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path}: its tokenizer cannot be made: {error}") from None
    tokenizer.pre_tokenizer = split()
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return HFVocabulary(tokenizer, roles)


def _gpt2() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {"gpt-2": _gpt2, "smollm": _smollm}


def _config(file: GGUF, dtype: str) -> decoder.Config:
    s = Settings(file.metadata, str(file.path))
    s.demand({"general.architecture": ("llama",), "llama.expert_count": (0,), "llama.rope.scaling.type": ("none",)})
    heads, width = s.size("llama.attention.head_count"), s.size("llama.embedding_length")
    per_head = s.size("llama.attention.key_length", max(width // heads, 1))
    s.demand({"llama.attention.value_length": (per_head,)})
    return decoder.Config(
        vocab_size=s.size("llama.vocab_size", len(file.metadata.get("tokenizer.ggml.tokens", ()))),
        layers=s.size("llama.block_count"),
        width=width,
        heads=heads,
        kv_heads=s.size("llama.attention.head_count_kv", heads),
        head_dim=per_head,
        ffn=s.size("llama.feed_forward_length"),
        norm_eps=s.number("llama.attention.layer_norm_rms_epsilon"),
        rotary_base=s.number("llama.rope.freq_base", 10_000.0),
        rotary_fraction=s.size("llama.rope.dimension_count", per_head) / per_head,
        tied_head="output.weight" not in file.tensors,
        param_dtype=dtype,
    )


def _pieces(cfg: decoder.Config) -> list[Piece]:
    at = "blk.{i}."
    return [
        Piece("token_embd.weight", ("embedding",)),
        Piece(at + "attn_norm.weight", ("blocks/attention_norm/scale",)),
        Piece(at + "attn_q.weight", ("blocks/attention/query/kernel",), adjacent_pairs(cfg.heads)),
        Piece(at + "attn_k.weight", ("blocks/attention/key/kernel",), adjacent_pairs(cfg.groups)),
        *(Piece(f"{at}{theirs}.weight", (f"blocks/{ours}/kernel",)) for theirs, ours in LINEARS.items()),
        Piece(at + "ffn_norm.weight", ("blocks/mlp_norm/scale",)),
        Piece("output_norm.weight", ("final_norm/scale",)),
        *([] if cfg.tied_head else [Piece("output.weight", ("head/kernel",))]),
    ]


def _list(file: GGUF, key: str) -> list[Any]:
    found = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(found, list) or not found:
        raise DataError(f"{file.path} has no list tokenizer.ggml.{key}")
    return found


def _token_id(file: GGUF, role: str, count: int) -> int:
    name = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id"}[role]
    found = file.metadata.get(f"tokenizer.ggml.{name}", file.metadata.get("tokenizer.ggml.eos_token_id"))
    if type(found) is not int or not 0 <= found < count:
        raise DataError(f"{file.path}: tokenizer.ggml.{name} is {found!r}, expected one of {count} tokens")
    return found
