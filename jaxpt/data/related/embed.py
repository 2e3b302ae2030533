"""Embeddings of documents without a model: tf-idf, and the directions that explain most of it (latent semantic analysis)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def tfidf_embeddings(
    texts: Sequence[str], dimensions: int = 64, *, seed: int = 0, min_documents: int = 2
) -> Float[np.ndarray, "N d"]:
    """[N, d] float32 of length 1 (or 0, for a text without a known word): tf-idf of words, projected by a truncated SVD.

    d is `dimensions`, or the number of words - 1 where there are fewer.

    Args:
      min_documents: words of fewer documents are left out.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: no texts, dimensions < 1, or fewer than two words that enough documents share.
    """
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ImportError("tf-idf embeddings need scikit-learn: pip install 'jaxpt[related]'") from error
    if not texts or dimensions < 1:
        raise ValueError(f"need texts and at least one dimension, got {len(texts)} texts and dimensions={dimensions}")
    words = TfidfVectorizer(sublinear_tf=True, min_df=min(min_documents, len(texts)), dtype=np.float32)
    try:
        counts = words.fit_transform(texts)
    except ValueError as error:
        raise ValueError(f"no word is in {min_documents} of the {len(texts)} texts: {error}") from error
    if counts.shape[1] < 2:
        raise ValueError(f"the {len(texts)} texts share {counts.shape[1]} words, need at least 2")
    found = TruncatedSVD(min(dimensions, counts.shape[1] - 1), random_state=seed).fit_transform(counts)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return (found / np.maximum(length, 1e-12)).astype(np.float32)
