"""A vocabulary of whole words, for generated languages: one token per word between spaces."""

from __future__ import annotations

from collections.abc import Sequence

from jaxpt.data.vocabularies import HFVocabulary


def word_vocabulary(words: Sequence[str]) -> HFVocabulary:
    """Ids by the order of `words`, after <pad>, <eos>, <bos> and <unk>.

    Raises:
      ValueError: a word that is empty, has a space, or comes twice.
    """
    import tokenizers

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    bad = [w for w in words if not w or w.split() != [w] or w in special]
    if bad or len(set(words)) != len(words):
        raise ValueError(f"words must be different and without spaces, got {bad[:5] or 'one twice'}")
    ids = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return HFVocabulary(tokenizer)
