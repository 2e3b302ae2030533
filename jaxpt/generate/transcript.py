"""The text of a continuation while it grows: where it stops, and how much of it is settled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxpt.data.vocabularies import Vocabulary

UNFINISHED = "\ufffd"  # what a character decodes to whose last bytes have not come yet


@dataclasses.dataclass
class Transcript:
    """Tokens so far and their text, which ends before the first stop string."""

    vocabulary: Vocabulary
    stop: tuple[str, ...]
    stop_ids: tuple[int, ...]
    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    text: str = ""
    stopped: bool = False

    def add(self, token: int, logprob: float) -> None:
        """One more token; nothing once it has stopped."""
        if self.stopped:
            return
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.stopped = token in self.stop_ids
        self.text = self.vocabulary.decode(self.ids[:-1] if self.stopped else self.ids)
        found = [at for at in (self.text.find(s) for s in self.stop) if at >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    @property
    def settled(self) -> str:
        """What no further token will change: without half characters and beginnings of stop strings."""
        if self.stopped:
            return self.text
        text = self.text.rstrip(UNFINISHED)
        return text[: len(text) - max((_overlap(text, s) for s in self.stop), default=0)]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def check_stop(stop: Sequence[str]) -> None:
    """Raises a ValueError for an empty stop string, which every text contains."""
    if any(not s for s in stop):
        raise ValueError(f"stop strings must not be empty, got {tuple(stop)!r}")
