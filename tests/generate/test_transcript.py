"""Where a growing text stops, and how much of it may be shown."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt.data.vocabularies import ByteVocabulary
from jaxpt.generate.transcript import Transcript

BYTES = ByteVocabulary()


def run(text, stop=(), end=True):
    """The transcript and what was settled after each token of the text."""
    transcript, settled = Transcript(BYTES, tuple(stop), (BYTES.eos_id,)), []
    for token in [*BYTES.encode(text), *([BYTES.eos_id] if end else [])]:
        transcript.add(token, -1.0)
        settled.append(transcript.settled)
    return transcript, settled


def test_the_end_token_stops_and_is_no_text():
    transcript, _ = run("hello")
    assert transcript.stopped and transcript.text == "hello"
    assert transcript.ids == [*BYTES.encode("hello"), BYTES.eos_id] and len(transcript.logprobs) == 6
    transcript.add(50, -1.0)
    assert transcript.text == "hello" and len(transcript.ids) == 6  # nothing comes after


@pytest.mark.parametrize(
    ("stop", "text"), [(["\n\n"], "a b"), (["c", "b"], "a "), (["nowhere"], "a b\n\nc"), (["a"], "")]
)
def test_the_first_stop_string_ends_the_text_before_it(stop, text):
    transcript, _ = run("a b\n\nc", stop)
    assert transcript.text == text and transcript.stopped


def test_half_characters_and_beginnings_of_stop_strings_are_held_back():
    _, settled = run("né END", ["END!"], end=False)
    assert settled == ["n", "n", "né", "né ", "né ", "né ", "né "]
    assert run("né END", ["END!"])[1][-1] == "né END"  # the end settles everything


@settings(deadline=None, max_examples=80)
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_settled_text_only_grows_and_ends_as_the_text(text, stop):
    transcript, settled = run(text, stop)
    for one, other in itertools.pairwise(settled):
        assert other.startswith(one)
    assert settled[-1] == transcript.text
    cuts = [text.find(s) for s in stop if s in text]
    assert transcript.text == (text[: min(cuts)] if cuts else text)
