"""Evaluation: one scoring core, and on it every metric; each result names its metric, its version and its data.

scoring            token log-likelihoods under masks, few compiled shapes        all below rest on it
bits_per_byte      prepared records by domain, during training                   documents: any texts
minimal_pairs      phenomena + grammar (generated), BLiMP and EWoK files         pseudo_log_likelihood: for encoders
multiple_choice    four normalisations, few-shot                                 lm_eval: our models in the harness
fine_tune          classification (tasks), grids and seeds
tables             questions about tables: sql (queries, run), denotation
generation_metrics, memorisation, icl_probes                                     significance: is a difference one
"""

from jaxpt.evaluate.bits_per_byte import bits_per_byte, make_scorer, sum_nats, summarize
from jaxpt.evaluate.documents import documents_bits_per_byte
from jaxpt.evaluate.minimal_pairs import Pair, pair_accuracy
from jaxpt.evaluate.multiple_choice import Item, multiple_choice
from jaxpt.evaluate.report import Report
from jaxpt.evaluate.rolling import rolling
from jaxpt.evaluate.scoring import Scorer, decoder_tokens, on_texts

__all__ = [
    "Item",
    "Pair",
    "Report",
    "Scorer",
    "bits_per_byte",
    "decoder_tokens",
    "documents_bits_per_byte",
    "make_scorer",
    "multiple_choice",
    "on_texts",
    "pair_accuracy",
    "rolling",
    "sum_nats",
    "summarize",
]
