"""Which documents are related, and an order that puts them next to each other (In-context Pretraining, arXiv 2310.10638).

    idx, sim = knn_graph(tfidf_embeddings(texts), k=10)      # each document's nearest neighbours
    order = max_tsp_greedy(idx, sim)                         # every document once, neighbours adjacent
    packing = pack_in_order(units, order, 512)               # contexts of 512 tokens along that path

`jaxpt.in_context.RelatedConfig` is the data of a run made this way; recipes/in_context_pretraining.py tests the claim.
"""

from jaxpt.data.related.contexts import Units, nearest_first, pack_in_order, pieces, whole_documents
from jaxpt.data.related.duplicates import near_dup, without_near_duplicates
from jaxpt.data.related.embed import tfidf_embeddings
from jaxpt.data.related.neighbours import approximate_graph, knn_graph
from jaxpt.data.related.paths import max_tsp_greedy, merge_short, path_weight, walks

__all__ = [
    "Units",
    "approximate_graph",
    "knn_graph",
    "max_tsp_greedy",
    "merge_short",
    "near_dup",
    "nearest_first",
    "pack_in_order",
    "path_weight",
    "pieces",
    "tfidf_embeddings",
    "walks",
    "whole_documents",
    "without_near_duplicates",
]
