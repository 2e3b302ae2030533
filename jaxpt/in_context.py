"""The data of in-context pretraining (arXiv 2310.10638): the same documents, only in another order.

    cfg = Pretrain(data=RelatedConfig(order="related", sequence_length=512), ...)

    standard   documents in random order
    related    along the greedy path through the graph of nearest neighbours
    repeated   each document followed by its nearest neighbours, with repetition (the paper's kNN baseline)

Contexts are cut along the order and shuffled by the plan; attention crosses documents; every token counts. Near duplicates
of what comes before them on the related path are left out of all three. The order is computed once and kept beside the
records.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jaxpt.core.config import to_dict
from jaxpt.core.files import write_array
from jaxpt.core.names import nearest_error
from jaxpt.data import vocabularies
from jaxpt.data.loader import Loader, single_source
from jaxpt.data.packing import Packing
from jaxpt.data.records import TokenRecords
from jaxpt.data.related import (
    Units,
    knn_graph,
    max_tsp_greedy,
    merge_short,
    nearest_first,
    pack_in_order,
    pieces,
    tfidf_embeddings,
    walks,
    whole_documents,
    without_near_duplicates,
)
from jaxpt.pretrain import Data, DataConfig
from jaxpt.sharding import local_rows

ORDERS = ("standard", "related", "repeated")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """How documents are compared and walked along.

    Attributes:
      neighbours: k, of each document.
      dimensions: of the tf-idf embeddings.
      start: of a walk: "min_degree" (paper) or "arbitrary" (released code).
      walk: documents of the longest walk; shorter ones are dissolved. None for walks of any length (paper); 21 in the
        released code.
      near_duplicates: whether they stay.
      seed: of the random order and of the projection.
    """

    neighbours: int = 10
    dimensions: int = 64
    start: str = "min_degree"
    walk: int | None = None
    near_duplicates: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelatedConfig(DataConfig):
    """Which text, and in which order.

    Attributes:
      order: "standard", "related" or "repeated".
      piece: documents are cut into pieces of so many tokens; None for whole ones.
      per_document: at most so many pieces of each.
    """

    packing: str = "concatenate"
    order: str = "related"
    piece: int | None = None
    per_document: int = 4
    graph: Graph = dataclasses.field(default_factory=Graph)

    def open(self, vocab_size: int) -> RelatedData:
        """The records of `task` with the order of their documents; both are made on first use.

        Raises:
          ValueError: an unknown order, a packing that keeps documents apart, a vocabulary larger than the model's.
        """
        return self.ordered(super().open(vocab_size))

    def ordered(self, data: Data) -> RelatedData:
        """These records in the order of this description."""
        if self.order not in ORDERS:
            raise nearest_error("order", self.order, ORDERS)
        if self.packing != "concatenate":
            raise ValueError(f'related documents must see each other: packing="concatenate", got {self.packing!r}')
        units = self.units(data.train)
        found = _kept(self, data.train, units)
        return RelatedData(self, data.train, data.validation, pack_in_order(units, found, self.sequence_length))

    def units(self, records: TokenRecords) -> Units:
        """What is put in order."""
        return whole_documents(records) if self.piece is None else pieces(records, self.piece, self.per_document)


@dataclasses.dataclass(frozen=True)
class RelatedData(Data):
    """Records and the contexts that their documents make up. Held-out documents are scored one by one, as elsewhere."""

    contexts: Packing

    def loader(self, mesh: Mesh | None = None, seed: int | None = None) -> Loader:
        """Batches of contexts, shuffled anew in every epoch."""
        size, seed = self.cfg.batch_size, self.cfg.seed if seed is None else seed
        return single_source(self.train, self.contexts, size, seed, rows=local_rows(mesh, size))


def texts(records: TokenRecords, units: Units) -> list[str]:
    """The text of every unit."""
    vocabulary = vocabularies.load(records.folder / "vocabulary")
    found = (units.tokens(records, i) for i in range(len(units)))
    return [vocabulary.decode(ids[ids != records.eos_id].tolist()) for ids in found]


def neighbours(
    graph: Graph, found: list[str], mesh: Mesh | None = None
) -> tuple[Int[np.ndarray, "N k"], Float[np.ndarray, "N k"]]:
    """The graph of these texts."""
    embedded = tfidf_embeddings(found, graph.dimensions, seed=graph.seed)
    return knn_graph(embedded, min(graph.neighbours, len(found) - 1), mesh=mesh)


def arrange(
    order: str, graph: Graph, found: list[str], lengths: Int[np.ndarray, " N"], sequence_length: int
) -> Int[np.ndarray, " M"]:
    """The order of these texts. "standard" and "related" are permutations of the same texts."""
    idx, sim = neighbours(graph, found)
    path = max_tsp_greedy(idx, sim, graph.start)  # type: ignore[arg-type]
    if graph.walk is not None:
        cut = walks(idx, sim, graph.start, graph.walk)  # type: ignore[arg-type]
        path = np.concatenate(merge_short(cut, idx, graph.walk))
    kept = path if graph.near_duplicates else without_near_duplicates(path, found)
    if order == "related":
        return kept
    shuffled = np.random.default_rng(graph.seed).permutation(np.sort(kept))
    return shuffled if order == "standard" else nearest_first(idx, lengths, sequence_length, shuffled)


def _kept(cfg: RelatedConfig, records: TokenRecords, units: Units) -> Int[np.ndarray, " M"]:
    """`arrange`, kept in a file beside the records: every host and every restart has the same order."""
    described: dict[str, Any] = {
        "records": records.fingerprint, "order": cfg.order, "graph": to_dict(cfg.graph), "piece": cfg.piece,
        "per_document": cfg.per_document, "sequence_length": cfg.sequence_length if cfg.order == "repeated" else None,
    }  # fmt: skip
    digest = hashlib.sha256(repr(described).encode()).hexdigest()[:16]
    path = records.folder / records.split / f"order-{digest}.npy"
    if path.is_file():
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path} is not an order of documents ({error}); delete it, and it is made again"
            ) from error
    order = arrange(cfg.order, cfg.graph, texts(records, units), units.lengths, cfg.sequence_length)
    write_array(path, order)
    return order
