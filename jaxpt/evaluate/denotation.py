"""Whether an answer is the one that was wanted, up to how it is written.

    exact_match("Oslo ", "oslo")                                       case and white space are alike
    denotation_match("bergen, oslo, 1,200", "1200.0, Oslo, Bergen")    so are numbers, dates and the order of answers

Several answers are joined by ", ", as in WikiTableQuestions' and TaPEx's scoring; a comma without a space belongs to a
number. Dates are alike if they name the same day: 2019-03-05, 5 March 2019, March 5, 2019 is two answers and is put
together before they are counted.
"""

from __future__ import annotations

import datetime
import re
import unicodedata

from jaxpt.data.tables.table import is_number, number

MONTHS = tuple("january february march april may june july august september october november december".split())
DAY_FIRST = re.compile(r"(\d{1,2})(?:st|nd|rd|th)? ([a-z]+)\.?,? (\d{4})")
MONTH_FIRST = re.compile(r"\b([a-z]+)\.? (\d{1,2})(?:st|nd|rd|th)?, ?(\d{4})\b")
ISO = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})")


def exact_match(predicted: str, reference: str) -> bool:
    """The same text but for case and white space."""
    return _plain(predicted) == _plain(reference)


def denotation_match(predicted: str, reference: str) -> bool:
    """The same answers, each as often, in any order."""
    return sorted(answers(predicted)) == sorted(answers(reference))


def answers(text: str) -> list[str]:
    """The normalised answers that ", " joins."""
    whole = MONTH_FIRST.sub(lambda found: _date(found[2], found[1], found[3]) or found[0], _plain(text))
    return [normalised_answer(part) for part in whole.split(", ") if part.strip()]


def normalised_answer(text: str) -> str:
    """An answer in the one way to write it: numbers by value, dates as year-month-day, no quotes or final full stop."""
    plain = _plain(text).strip("\"'`").rstrip(".").strip() or _plain(text)
    if is_number(plain):
        return repr(float(number(plain)) + 0.0)  # no negative zero
    if found := ISO.fullmatch(plain):
        return _iso(*found.groups()) or plain
    if found := DAY_FIRST.fullmatch(plain):
        return _date(*found.groups()) or plain
    return plain


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def _date(day: str, month: str, year: str) -> str | None:
    found = [i for i, name in enumerate(MONTHS, 1) if len(month) >= 3 and name.startswith(month)]
    return _iso(year, str(found[0]), day) if found else None


def _iso(year: str, month: str, day: str) -> str | None:
    try:
        return datetime.date(int(year), int(month), int(day)).isoformat()
    except ValueError:
        return None
