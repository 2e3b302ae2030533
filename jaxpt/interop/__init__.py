"""Models from the outside world and back: Hugging Face folders, GGUF files, a sentence encoder, Flax Linen.

    from jaxpt.interop import hugging_face, gguf, linen, text_model
    embed = jaxpt.interop.embedder()           # texts -> unit vectors [N, 384]

Files are read with distrust: a `jaxpt.data.documents.DataError` names the file and what is wrong with it, and nothing in
a file is ever executed. Nothing heavy is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxpt.interop.minilm import SentenceEncoder


def embedder(mesh: Mesh | None = None, batch_size: int = 32) -> SentenceEncoder:
    """The project's default sentence encoder, all-MiniLM-L6-v2: call it with texts, get unit vectors [N, 384].

    Args:
      mesh: over which batches are split; one device if None.

    Raises:
      DataError: the model cannot be downloaded.
    """
    from jaxpt.interop import minilm

    return minilm.load(mesh=mesh, batch_size=batch_size)
