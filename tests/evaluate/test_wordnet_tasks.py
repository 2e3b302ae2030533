"""WordNet tasks on a small database in its format: relations as written, words on one side, bad files named."""

from __future__ import annotations

import pytest

from jaxpt.data.documents import DataError
from jaxpt.evaluate import wordnet_tasks as w


@pytest.fixture
def folder(tmp_path):
    """80 synsets in a chain of hypernyms, the even ones with a synonym, each an antonym of the next."""
    lines = ["  1 This software and database is being provided ..."]
    for i in range(80):
        words = f"word_{i} 0" + (f" same{i}(a) 0" if i % 2 == 0 else "")
        pointers = [f"@ {i - 1:08d} n 0000"] if i else []
        pointers += [f"! {i + 1:08d} n 0101"] if i < 79 else []
        head = f"{i:08d} 03 n {2 - i % 2:02x} {words} {len(pointers):03d} {' '.join(pointers)}"
        lines.append(f'{head} | the meaning of {i}; "an example"  ')
    (tmp_path / "data.noun").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_files_are_read(folder):
    found = w.read(folder)
    assert len(found) == 80
    assert found["n", 2] == w.Synset(
        ("word 2", "same2"), 'the meaning of 2; "an example"', (("@", "n", 1, 0, 0), ("!", "n", 3, 1, 1))
    )


def test_relations_are_those_of_the_files_and_words_are_on_one_side(folder):
    task = w.relation_task(folder)
    assert task.classes == 3 and len(task.train) + len(task.validation) == 3 * 40
    for e in (*task.train, *task.validation):
        a, b = (int("".join(c for c in text if c.isdigit())) for text in (e.first, e.second))
        assert b - a == {0: 0, 1: 1, 2: -1}[e.label]
    assert not {e.first for e in task.train} & {e.first for e in task.validation}
    assert task.fingerprint == w.relation_task(folder).fingerprint != w.relation_task(folder, seed=1).fingerprint


def test_definitions_are_right_or_another_words(folder):
    task = w.gloss_task(folder)
    for side in (task.train, task.validation):
        assert sum(e.label for e in side) * 2 == len(side) > 8
        for e in side:
            assert (e.second == f"the meaning of {e.first.split()[1]}") == (e.label == 1)
    assert not {e.second for e in task.train} & {e.second for e in task.validation}


def test_bad_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no WordNet data file"):
        w.read(tmp_path)
    (tmp_path / "data.verb").write_text("00000001 03 v 02 only 0 000 | x\n")
    with pytest.raises(DataError, match=r"data\.verb, line 1 is not a WordNet synset"):
        w.read(tmp_path)
    (tmp_path / "data.verb").write_text("00000001 03 v 01 only 0 000 | x\n")
    with pytest.raises(DataError, match="no synonym and no antonym and no hypernym"):
        w.relation_task(tmp_path)
