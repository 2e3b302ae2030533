"""Near-duplicate groups and the split that follows from them."""

from __future__ import annotations

import hashlib
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt.data.documents import Document
from jaxpt.data.split import jaccard, near_duplicate_groups, split_of, word_grams

GOLDEN = (["train", "validation", "train"], "a78db947042f1541")
WORDS = [f"word{i}" for i in range(3000)]


def documents(texts: dict[str, str]) -> list[Document]:
    return [Document(name, "d", "", text, "CC0-1.0") for name, text in texts.items()]


def text(seed: int, count: int = 400) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def changed(words: list[str], places: list[int]) -> list[str]:
    return [f"new{i}" if i in places else w for i, w in enumerate(words)]


def test_planted_near_duplicates_share_a_group_and_a_side():
    texts = {f"base{i}": " ".join(text(i)) for i in range(60)}
    for i in range(60):
        texts[f"copy{i}"] = "  \n".join(changed(text(i), [50, 300])).upper()
    groups = near_duplicate_groups(documents(texts))
    assert set(groups) == set(texts)
    assert len(set(groups.values())) == 60
    for i in range(60):
        assert groups[f"base{i}"] == groups[f"copy{i}"] == f"base{i}"
        assert split_of(groups[f"base{i}"], 0.3) == split_of(groups[f"copy{i}"], 0.3)


def test_the_border_is_exact():
    """400 words have 396 5-grams; k spaced changes replace 5 k of them: Jaccard (396 - 5 k) / (396 + 5 k)."""
    base = text(1)
    for count, same in ((8, True), (9, False)):  # 356/436 = 0.817, 351/441 = 0.796
        other = changed(base, [20 * (i + 1) for i in range(count)])
        grams = [word_grams(" ".join(words), {}) for words in (base, other)]
        assert jaccard(*grams) == (396 - 5 * count) / (396 + 5 * count)
        groups = near_duplicate_groups(documents({"a": " ".join(base), "b": " ".join(other)}))
        assert (groups["a"] == groups["b"]) is same


def test_groups_are_transitive_and_do_not_depend_on_the_order():
    chain = [text(5)]
    for i in range(6):
        chain.append(changed(chain[-1], [30 + 60 * i, 50 + 60 * i]))
    ends = [word_grams(" ".join(chain[i]), {}) for i in (0, -1)]
    assert jaccard(*ends) < 0.8  # the ends are no near duplicates; only the chain joins them
    docs = documents({f"{'zyxwvut'[i]}": " ".join(words) for i, words in enumerate(chain)} | {"other": "a b c d e f"})
    expected = {d.id: "t" for d in docs} | {"other": "other"}
    for seed in range(5):
        random.Random(seed).shuffle(docs)
        assert near_duplicate_groups(docs) == expected


def test_short_documents_stay_alone():
    groups = near_duplicate_groups(documents({"a": "one two three four", "b": "one two three four", "c": "", "d": ""}))
    assert groups == {"a": "a", "b": "b", "c": "c", "d": "d"}
    assert near_duplicate_groups([]) == {}
    exactly_five = near_duplicate_groups(documents({"b": "one two three four five", "a": "One two three four  five"}))
    assert exactly_five == {"a": "a", "b": "a"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=14).map(" ".join), max_size=8))
def test_groups_are_the_components_of_the_exact_relation(texts):
    names = [f"{i}" for i in range(len(texts))]
    sets = [{tuple(t.split()[i : i + 5]) for i in range(len(t.split()) - 4)} for t in texts]
    expected = {name: name for name in names}
    for _ in names:  # as often as the longest chain
        for i, a in enumerate(sets):
            for j, b in enumerate(sets):
                if a and b and len(a & b) / len(a | b) > 0.8:
                    expected[names[i]] = min(expected[names[i]], expected[names[j]])
    assert near_duplicate_groups(documents(dict(zip(names, texts, strict=True)))) == expected


def test_the_split_never_changes():
    """If this fails, documents of every prepared data set have moved from validation into training."""
    assert [split_of(g, 0.5) for g in ("a", "b", "python-code:json.decoder")] == GOLDEN[0]
    sides = "".join(split_of(f"document:{i}", 0.05, seed=7)[0] for i in range(5000))
    assert hashlib.sha256(sides.encode()).hexdigest()[:16] == GOLDEN[1]


def test_shares_seeds_and_nesting():
    ids = [f"g{i}" for i in range(20_000)]
    held = {g for g in ids if split_of(g, 0.05) == "validation"}
    assert abs(len(held) / len(ids) - 0.05) < 0.006
    assert held < {g for g in ids if split_of(g, 0.10) == "validation"}
    assert held != {g for g in ids if split_of(g, 0.05, seed=1) == "validation"}
    assert {split_of(g, 0.0) for g in ids[:100]} == {"train"}
    assert {split_of(g, 1.0) for g in ids[:100]} == {"validation"}
    for bad in (-0.1, 5):
        with pytest.raises(ValueError, match="between 0 and 1.*try 0.05"):
            split_of("g", bad)


def test_grams_count_distinct_windows():
    assert word_grams("a b c d e a b c d e a b c d e", {}).size == 5
    assert word_grams("a b c d", {}).size == 0


def test_twelve_megabytes_take_seconds():
    """The quickstart waits for this; the bound is loose."""
    docs = documents({str(i): " ".join(text(i, 1150)) for i in range(1500)})
    assert sum(len(d.text) for d in docs) > 12e6
    started = time.process_time()
    near_duplicate_groups(docs)
    assert time.process_time() - started < 25
