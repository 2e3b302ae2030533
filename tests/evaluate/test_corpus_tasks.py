"""Tasks made of corpora: passages and pages on one side of the split, labels as promised, digits as images."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from jaxpt.data.corpora import open_corpus
from jaxpt.data.documents import DataError, Document
from jaxpt.evaluate import classification as c
from jaxpt.evaluate import corpus_tasks as t
from jaxpt.evaluate import images

network = pytest.mark.skipif(
    os.environ.get("JAXPT_NETWORK_TESTS") != "1", reason="set JAXPT_NETWORK_TESTS=1 to download"
)


def bible(books=5, chapters=12, verses=9):
    """Chapters as the corpus has them: a verse a line, ids BB-CCC; every verse says where it is from."""
    return [
        Document(
            f"kjv:{book:02}-{chapter:03}",
            "scripture",
            f"Book {book}",
            "\n".join(f"b{book} c{chapter} v{v} and it was so ." for v in range(verses)),
            "",
        )
        for book in range(1, books + 1)
        for chapter in range(1, chapters + 1)
    ]


def origin(text):
    """(book, chapter, verses) of a passage."""
    words = text.split()
    return words[0], words[1], [int(w[1:]) for w in words if w[0] == "v" and w[1:].isdigit()]


def test_pairs_of_passages_are_of_one_book_or_of_two_and_chapters_are_on_one_side():
    task = t.same_book_task(bible())
    sides = []
    for side in (task.train, task.validation):
        assert len(side) > 10 and sum(e.label for e in side) * 2 == len(side)
        for e in side:
            a, b = origin(e.first), origin(e.second)
            assert (a[0] == b[0]) == (e.label == 1) and a[:2] != b[:2] and len(a[2]) == len(b[2]) == 3
        sides.append({origin(x)[:2] for e in side for x in (e.first, e.second)})
    assert not sides[0] & sides[1] and task.metric == "f1"
    assert task.fingerprint == t.same_book_task(bible()).fingerprint != t.same_book_task(bible(), seed=1).fingerprint
    assert c.baselines(task)["bag_of_words"] > 0.9  # here, and here alone, the book is written in the text


def test_passages_that_follow_are_in_order_or_swapped():
    task = t.verse_order_task(bible())
    sides = []
    for side in (task.train, task.validation):
        assert abs(sum(e.label for e in side) * 2 - len(side)) <= 1 and len(side) > 4
        for e in side:
            a, b = origin(e.first), origin(e.second)
            first, second = (a, b) if e.label else (b, a)
            assert a[:2] == b[:2] and second[2] == [v + 3 for v in first[2]]
        sides.append({origin(e.first)[:2] for e in side})
    assert not sides[0] & sides[1] and len(task.train) + len(task.validation) == 60


def test_sections_of_the_manual_are_the_labels():
    pages = [
        Document(f"man:{1 + i % 3}/page{i}.{1 + i % 3}", "manual", "", f"NAME\n\n{f'kind{i % 3} word{i} ' * 20}", "")
        for i in range(90)
    ]
    task = t.manual_section_task(pages)
    assert task.classes == 3 and len(task.train) + len(task.validation) == 90
    for e in (*task.train, *task.validation):
        assert e.first.startswith(f"kind{e.label} ")
    assert c.baselines(task)["bag_of_words"] == 1
    with pytest.raises(DataError, match=r"'kjv:01-001' is not a manual page"):
        t.manual_section_task(bible())


def test_what_cannot_be_a_task_is_named():
    with pytest.raises(DataError, match="'man:1/x' is not a chapter"):
        t.same_book_task([Document("man:1/x", "manual", "", "a\n" * 9, "")])
    with pytest.raises(DataError, match="at least two books"):
        t.same_book_task(bible(books=1))
    with pytest.raises(ValueError, match="at least one verse"):
        t.verse_order_task(bible(), verses=0)
    with pytest.raises(ValueError, match="has 0 and 0 examples"):
        t.verse_order_task(bible(verses=5))


@network
def test_the_real_king_james_is_frozen_and_beyond_a_bag_of_words(tmp_path):
    """A change of these hashes is another task."""
    chapters = list(open_corpus("kjv", tmp_path))
    order = t.verse_order_task(chapters)
    assert t.same_book_task(chapters).fingerprint == "c0b41e686dafda4f" and order.fingerprint == "c1f724d1648882cf"
    assert (len(order.train), len(order.validation)) == (946, 228) and c.baselines(order)["bag_of_words"] < 0.55


# Digits


def test_digits_are_images_with_a_frozen_split():
    pytest.importorskip("sklearn")
    task = images.digits()
    assert task.train.shape[1:] == task.validation.shape[1:] == (8, 8) and task.train.dtype == np.float32
    assert len(task.train) + len(task.validation) == 1797 and 300 < len(task.validation) < 420
    assert task.train.min() == 0 and task.train.max() == 1 and task.classes == 10
    assert set(task.train_labels.tolist()) == set(task.validation_labels.tolist()) == set(range(10))
    sides = [{x.tobytes() for x in side} for side in (task.train, task.validation)]
    assert not sides[0] & sides[1] and task.fingerprint == images.digits().fingerprint == images.DIGITS
    found = images.baselines(task)
    assert found["majority"] < 0.15 and 0.93 < found["logistic"] < 1


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxpt\[images\]'"):
        images.digits()


def test_other_images_work_as_a_task_and_bad_ones_are_refused():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    pixels = np.clip(rng.uniform(size=(400, 4, 4)) * 0.4 + 0.5 * labels[:, None, None], 0, 1)
    task = images.image_task("blobs", pixels, labels)
    assert images.baselines(task)["logistic"] == 1 and task.classes == 2
    for bad, message in ((pixels * 2, "from 0 to 1"), (pixels[:, 0], "images"), (pixels[:9], "400 labels")):
        with pytest.raises(ValueError, match=message):
            images.image_task("bad", bad, labels)
