"""Twelve phenomena of English grammar as minimal pairs, generated from a lexicon; chance is 0.5 on each.

    pairs = minimal_pairs(seed=0, lexicon=lexicon)               # 12 x 500, {phenomenon: [Pair, ...]}

A template is a list of symbols of the grammar in which one place holds two: what the good and the bad sentence have there.
Two forms of a word stay one word. Everything else of a pair is the same, and both have the same number of words. The
content words of a good sentence are a combination that `english_grammar.corpus` leaves out.

Controls, all tested: the grammar itself (the oracle) scores 1.0, a uniform model 0.5, and a trigram model of the corpus at
most 0.6 where the answer is not local (`LONG_DISTANCE`) and at least 0.9 where it is (`LOCAL`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from jaxpt.evaluate.english_grammar import BE, HAVE, NUMBERS, english, held_out
from jaxpt.evaluate.grammar import Grammar
from jaxpt.evaluate.lexicon import Lexicon
from jaxpt.evaluate.minimal_pairs import Pair

Part = str | tuple[str, str]
Template = tuple[Part, ...]
LOCAL = ("subject-verb agreement", "determiner-noun agreement")
LONG_DISTANCE = ("agreement across a phrase", "agreement across a relative clause", "filler-gap", "wh-island")
TRIES = 1000  # draws for one pair before we say that the lexicon is too small
OTHER = {"sg": "pl", "pl": "sg"}


def minimal_pairs(
    seed: int, lexicon: Lexicon, per_phenomenon: int = 500, phenomena: Sequence[str] | None = None
) -> dict[str, list[Pair]]:
    """Pairs by phenomenon, all different, the same for the same seed and lexicon.

    Raises:
      ValueError: the lexicon is too small for so many different pairs.
    """
    grammar, lemmas = english(lexicon), lexicon.lemmas()
    found = {}
    for number, (name, templates) in enumerate(_templates().items()):
        if phenomena is not None and name not in phenomena:
            continue
        rng = np.random.default_rng([seed, 2, number])
        pairs: dict[tuple[str, str], None] = {}
        for template in itertools.islice(itertools.cycle(templates), per_phenomenon):
            _add(pairs, template, grammar, lemmas, rng, name)
        found[name] = [Pair(good, bad, name) for good, bad in pairs]
    return found


def acceptability(pairs: Sequence[Pair]) -> list[tuple[str, int]]:
    """(sentence, 1 if good else 0) of each half of each pair: a task of single sentences, as CoLA's."""
    return [(text, label) for p in pairs for text, label in ((p.good, 1), (p.bad, 0))]


def _add(
    pairs: dict[tuple[str, str], None],
    template: Template,
    grammar: Grammar,
    lemmas: dict[str, str],
    rng: np.random.Generator,
    name: str,
) -> None:
    for _ in range(TRIES):
        good, bad = _realise(template, grammar, rng)
        if held_out(good, lemmas) and (" ".join(good), " ".join(bad)) not in pairs:
            pairs[" ".join(good), " ".join(bad)] = None
            return
    raise ValueError(f"the lexicon is too small: after {TRIES} draws no new pair for {name!r} beside {len(pairs)}")


def _realise(template: Template, grammar: Grammar, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """The words of the good and the bad sentence."""
    good: list[str] = []
    bad: list[str] = []
    for part in template:
        if isinstance(part, str):
            words = grammar.sample(rng, part)
            good, bad = good + words, bad + words
        elif part[0] in grammar.words:
            one, two = (grammar.words[symbol] for symbol in part)
            index = int(rng.integers(len(one)))
            good.append(one[index])
            bad.append(two[index] if len(two) == len(one) else two[int(rng.integers(len(two)))])
        else:
            good, bad = good + part[0].split(), bad + part[1].split()
    return good, bad


def _templates() -> dict[str, list[Template]]:
    both = [(n, OTHER[n]) for n in NUMBERS]
    return {
        "subject-verb agreement": [
            (f"NP[{kind},{n}]", *rest) for n, m in both for kind, rest in _agreeing(n, m)
        ],
        "agreement across a phrase": [
            (f"NP[{kind},{n}]", "P", f"NP[{kind},{m}]", *rest) for n, m in both for kind, rest in _agreeing(n, m)
        ],
        "agreement across a relative clause": [
            (f"NP[{kind},{n}]", "that", f"NP[a,{m}]", f"Vt[{m}]", *rest)
            for n, m in both for kind, rest in _agreeing(n, m)
        ],
        "determiner-noun agreement": [
            ("NP[a]", "Vt[past]", determiner, (f"N[x,{n}]", f"N[x,{m}]"), ".")
            for n, m in both for determiner in {"sg": ("this", "that"), "pl": ("these", "those")}[n]
        ],
        "reflexive agreement": _reflexives(),
        "negative polarity": [
            (("no", other), f"N[a,{n}]", HAVE[n], "ever", "Vt[part]", "NP[x]", ".")
            for n, other in (("sg", "every"), ("pl", "all"), ("sg", "each"), ("pl", "most"))
        ],
        "irregular participle": [
            *((f"NP[a,{n}]", HAVE[n], ("Vs[part]", "Vs[past]"), "NP[x]", ".") for n in NUMBERS),
            *((f"NP[a,{n}]", ("Vs[past]", "Vs[part]"), "NP[x]", ".") for n in NUMBERS),
        ],
        "filler-gap": [
            template for n in NUMBERS for verb in (f"Vc[{n}]", "Vc[past]") for template in (
                (f"NP[a,{n}]", verb, ("what", "that"), "NP[a]", "Vt[past]", "."),
                (f"NP[a,{n}]", verb, ("that", "what"), "NP[a]", "Vt[past]", "NP[x]", "."),
            )
        ],
        "wh-island": [("what", "did", "NP[a]", "Vc[pl]", ("that", "whether"), "NP[a]", "Vt[past]", "?")],
        "argument structure": [
            template for n in NUMBERS for form in (n, "past") for template in (
                (f"NP[a,{n}]", (f"Vt[{form}]", f"Vi[{form}]"), "NP[x]", "."),
                (f"NP[a,{n}]", (f"Vi[{form}]", f"Vt[{form}]"), "."),
            )
        ],
        "passive agent": [
            (f"NP[{kind},{n}]", be, "Vt[part]", "by", "Det[" + m + "]", (f"N[a,{m}]", f"N[i,{m}]"), ".")
            for n in NUMBERS for be in BE[n] for m in NUMBERS for kind in ("a", "i")
        ],
        "quantifiers": _quantifiers(),
    }  # fmt: skip


def _agreeing(n: str, m: str) -> list[tuple[str, Template]]:
    """(kind of subject, verb phrase) with a verb that agrees with number n, or wrongly with m."""
    forms: list[tuple[str, Template]] = [
        (kind, (pair, "Adj", ".")) for kind in ("a", "i") for pair in zip(BE[n], BE[m], strict=True)
    ]
    return [
        *forms,
        ("a", ((HAVE[n], HAVE[m]), "Vt[part]", "NP[x]", ".")),
        ("a", ((f"Vt[{n}]", f"Vt[{m}]"), "NP[x]", ".")),
        ("a", ((f"Vi[{n}]", f"Vi[{m}]"), ".")),
    ]


def _reflexives() -> list[Template]:
    right = {("m", "sg"): "himself", ("f", "sg"): "herself", ("m", "pl"): "themselves", ("f", "pl"): "themselves"}
    return [
        (f"NP[{kind},{n}]", form, (word, wrong), ".")
        for (kind, n), word in right.items()
        for form in (f"Vt[{n}]", "Vt[past]")
        for wrong in ("himself", "herself", "themselves")
        if wrong != word
    ]


def _quantifiers() -> list[Template]:
    """Existential there with a quantifier that cannot follow it; a negative subject with at least or at most."""
    there: list[Template] = [
        ("there", be, (good, bad), f"N[x,{n}]", "P", "NP[i]", ".")
        for n, quantifiers in (
            ("sg", (("no", "every"), ("one", "each"))),
            ("pl", (("some", "all"), ("many", "most"))),
        )
        for be in BE[n]
        for good, bad in quantifiers
    ]
    superlative: list[Template] = [
        ("no", f"N[a,{n}]", "Vt[past]", pair, "Count", "N[x,pl]", ".")
        for n in NUMBERS
        for pair in (("more than", "at least"), ("fewer than", "at most"))
    ]
    positive: list[Template] = [
        ((good, "no"), f"N[a,{n}]", "Vt[past]", "at", word, "Count", "N[x,pl]", ".")
        for n, good in (("sg", "every"), ("pl", "all"))
        for word in ("least", "most")
    ]
    return [*there, *superlative, *positive]
