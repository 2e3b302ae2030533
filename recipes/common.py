"""What many recipes start from: a byte-level model that a CPU trains in seconds, and the LLaMA sizes of the papers on
memory-efficient pretraining."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxpt.core import spec as specs
from jaxpt.core.files import write_array
from jaxpt.core.types import Params
from jaxpt.data.held_out import Part, held_out
from jaxpt.models import decoder
from jaxpt.optim import AdamConfig, OptimizerConfig
from jaxpt.pretrain import DataConfig, Pretrain, flops_per_step
from jaxpt.sharding import MeshConfig
from jaxpt.training.run import RunConfig
from jaxpt.weights import Form

P = TypeVar("P", bound=Pretrain)

BLOCKS = "blocks"  # all attention and feed-forward matrices; embedding, head and norms stay as they are
# width, feed-forward width, layers, heads: SLTrain, GaLore, Fira and the benchmark of arXiv 2505.22922
LLAMA = {
    "60m": (512, 1376, 8, 8),
    "130m": (768, 2048, 12, 12),
    "350m": (1024, 2736, 24, 16),
    "1b": (2048, 5461, 24, 32),
    "7b": (4096, 11008, 32, 32),
}


def byte_level(steps: int) -> dict[str, Any]:
    """Fields of a two-layer model of Python's own source and documentation."""
    return {
        "model": decoder.Config(width=96, heads=4, ffn=256, layers=2, initializer_stddev=None, unroll=2),
        "data": DataConfig(sequence_length=64, batch_size=16, evaluation_tokens=32_768),
        "run": RunConfig(steps=steps),
    }


def llama(size: str, steps: int, warmup: int, clip: float | None = None) -> dict[str, Any]:
    """Fields of the papers' runs: bfloat16 weights and moments, 512 x 256 tokens an update.

    They train on C4 with the T5 tokenizer, which nobody can redistribute here: by default the text is the 12 million
    words of default-en with a SentencePiece vocabulary of the same size. With C4 on disk:
    `data.corpora=files:/c4/*.jsonl.gz data.vocabulary=/t5/spiece.model`.
    """
    width, ffn, layers, heads = LLAMA[size]
    return {
        "model": decoder.Config(
            width=width, ffn=ffn, layers=layers, heads=heads, vocab_size=32_000, remat="full",
            param_dtype="bfloat16", compute_dtype="bfloat16",
        ),
        "data": DataConfig(
            corpora=("default-en",), vocabulary="sentencepiece:32000", sequence_length=256, batch_size=512
        ),
        "optimizer": AdamConfig(rate=3e-3, warmup=warmup / steps, clip=clip),
        "run": RunConfig(steps=steps, evaluate_every=1000, checkpoint_every=1000),
        "mesh": MeshConfig(data=1, fsdp=-1),
    }  # fmt: skip


def with_form(cfg: P, form: Form, where: str = BLOCKS) -> P:
    """The run with these matrices in this form."""
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, weights=((where, form),)))


def with_optimizer(cfg: P, kind: type[OptimizerConfig], **own: Any) -> P:
    """The run with another optimizer under the same schedule and clipping; `own` are its settings."""
    shared = {f.name: getattr(cfg.optimizer, f.name) for f in dataclasses.fields(OptimizerConfig)}
    return dataclasses.replace(cfg, optimizer=kind(**shared | own))


def with_embedding(cfg: P, stddev: float) -> P:
    """The run with this standard deviation of the embedding's initial values."""
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, embedding_stddev=stddev))


def with_steps(cfg: P, steps: int) -> P:
    """The run with so many updates."""
    return dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, steps=steps))


def operations(cfg: Pretrain) -> float:
    """Nominal operations of an update."""
    return flops_per_step(cfg)(cfg.objective.on(cfg.model).spec()).nominal


def parameters(cfg: Pretrain) -> int:
    """Trainable numbers."""
    return specs.count(decoder.spec(cfg.model))


def held_out_batches(cfg: Pretrain, part: Part) -> Iterator[dict[str, np.ndarray]]:
    """The batches on which a run is scored: of this part, `evaluation_tokens` at most."""
    records = cfg.data.open(cfg.model.vocab_size).validation
    size, length = cfg.data.batch_size, cfg.data.sequence_length
    return held_out(records, length, size, part=part, max_tokens=cfg.data.evaluation_tokens).batches()


def keep(path: Path, params: Params) -> None:
    """Writes the parameters of a small model as one vector."""
    write_array(path, np.asarray(ravel_pytree(params)[0]))


def kept(path: Path, cfg: Pretrain) -> Params:
    """The parameters that a run of `cfg` left there."""
    like = specs.init(jax.random.key(0), cfg.objective.on(cfg.model).spec())
    return ravel_pytree(like)[1](jnp.asarray(np.load(path, allow_pickle=False)))
