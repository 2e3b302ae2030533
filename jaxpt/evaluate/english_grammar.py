"""The grammar of the generated language: agreement, attractors, reflexives, polarity, gaps, islands, passives, quantifiers.

    grammar = english(lexicon.small())
    sentences = corpus(grammar, lexicon, 20_000, seed=0)      # training text; held-out combinations do not occur

Symbols carry their features: NP[a,sg] is a singular noun phrase of an animate noun. Kinds of noun: m and f (himself,
herself), a (any animate noun), i (things), x (any noun). Every phenomenon's good sentences are in the language and none of
the bad ones (tested by the inside probability). Where a phenomenon is about long distance, the counterpart that makes the
neighbouring words no help is in the language too: "know whether" is at least as frequent as "know that", and "know what" and
"know that" are followed by the same words.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxpt.evaluate.grammar import Grammar
from jaxpt.evaluate.lexicon import Lexicon, Verb, strong_participle

NUMBERS = ("sg", "pl")
KINDS = ("m", "f", "a", "i", "x")
BE = {"sg": ("is", "was"), "pl": ("are", "were")}
HAVE = {"sg": "has", "pl": "have"}
HELD_OUT = 5  # one in so many combinations of content words is never in the corpus


def english(lexicon: Lexicon) -> Grammar:
    """The grammar over these words; the start symbol is S."""
    rules: dict[str, list[tuple[float, tuple[str, ...]]]] = {}
    for number in NUMBERS:
        _noun_phrases(rules, number)
        _verb_phrases(rules, number)
    subjects = [(kind, number) for kind in ("m", "f", "a", "i") for number in NUMBERS]
    rules["NP[a]"] = [(1.0, (f"NP[a,{number}]",)) for number in NUMBERS]
    rules["NP[x]"] = [(1.0, (f"NP[x,{number}]",)) for number in NUMBERS]
    rules["Clause"] = [(1.0, (f"Subject[{kind},{number}]", f"VP[{kind},{number}]")) for kind, number in subjects]
    rules["Polarity"] = [
        (3.0, ("no", f"N[a,{number}]", HAVE[number], "ever", "Vt[part]", "NP[x]")) for number in NUMBERS
    ] + [
        (w, (determiner, f"N[a,{number}]", HAVE[number], "Vt[part]", "NP[x]"))
        for number, determiner, w in (
            ("sg", "every", 2.0), ("sg", "each", 2.0), ("pl", "all", 2.0), ("pl", "most", 2.0),
            ("sg", "no", 0.5), ("pl", "no", 0.5),
        )
    ]  # fmt: skip
    rules["Past"] = [(3.0, ("NP[a]", "Vt[past]", "NP[x]")), (1.0, ("NP[a]", "Vi[past]"))]
    rules["Gap"] = [(1.0, ("NP[a]", "Vt[past]"))]
    rules["Embedded"] = [
        (1.0, (f"NP[a,{number}]", verb, *rest))
        for number in NUMBERS
        for verb in (f"Vc[{number}]", "Vc[past]")
        for rest in (("that", "Past"), ("whether", "Past"), ("what", "Gap"))
    ]
    rules["Question"] = [
        (1.0, ("did", "NP[a]", "Vc[pl]", "that", "Past")),
        (3.0, ("did", "NP[a]", "Vc[pl]", "whether", "Past")),
        (1.0, ("what", "did", "NP[a]", "Vc[pl]", "that", "Gap")),
        (0.5, ("what", "did", "NP[a]", "Vt[pl]")),
    ]
    rules["There"] = [(1.0, ("there", be, f"Exists[{n}]", f"N[x,{n}]", "P", "NP[i]")) for n in NUMBERS for be in BE[n]]
    rules["NP[i]"] = [(1.0, (f"NP[i,{number}]",)) for number in NUMBERS]
    rules["Exists[sg]"] = [(1.0, ("no",)), (1.0, ("one",))]
    rules["Exists[pl]"] = [(1.0, (word,)) for word in ("no", "some", "many", "few", "two")]
    rules["Superlative"] = [
        (1.0, (*subject, "Vt[past]", *quantity, "N[x,pl]"))
        for subject in (("every", "N[a,sg]"), ("each", "N[a,sg]"), ("all", "N[a,pl]"), ("the", "N[a,pl]"))
        for quantity in (("at", "least", "Count"), ("at", "most", "Count"))
    ]
    rules["Superlative"] += [
        (2.0, (*subject, "Vt[past]", word, "than", "Count", "N[x,pl]"))
        for subject in (("no", "N[a,sg]"), ("no", "N[a,pl]"), ("every", "N[a,sg]"))
        for word in ("more", "fewer")
    ]
    rules["Count"] = [(1.0, (word,)) for word in ("two", "three", "ten")]
    rules["S"] = [
        (0.56, ("Clause", ".")), (0.09, ("Polarity", ".")), (0.12, ("Embedded", ".")), (0.1, ("Question", "?")),
        (0.06, ("There", ".")), (0.07, ("Superlative", ".")),
    ]  # fmt: skip
    return Grammar(rules, _words(lexicon))


def combination(sentence: Sequence[str], lemmas: dict[str, str]) -> tuple[str, ...]:
    """The lemmas of the nouns, verbs and adjectives of a sentence, in order."""
    return tuple(lemmas[word] for word in sentence if word in lemmas)


def held_out(sentence: Sequence[str], lemmas: dict[str, str]) -> bool:
    """Whether this combination of content words is kept from the corpus, by its hash."""
    return zlib.crc32(" ".join(combination(sentence, lemmas)).encode()) % HELD_OUT == 0


def corpus(grammar: Grammar, lexicon: Lexicon, sentences: int, seed: int) -> Iterator[str]:
    """Sentences of the grammar, words separated by spaces, without the held-out combinations."""
    rng, lemmas = np.random.default_rng([seed, 1]), lexicon.lemmas()
    while sentences > 0:
        words = grammar.sample(rng)
        if not held_out(words, lemmas):
            sentences -= 1
            yield " ".join(words)


def _noun_phrases(rules: dict[str, list[tuple[float, tuple[str, ...]]]], number: str) -> None:
    """NP[kind,number] is simple; Subject[kind,number] may carry a prepositional phrase or an object relative clause."""
    common = {"sg": ("this", "that", "every"), "pl": ("these", "those", "some")}[number]
    rules[f"Det[{number}]"] = [(3.0, ("the",)), *((1.0, (word,)) for word in common)]
    for kind in KINDS:
        name = f"{kind},{number}"
        rules[f"NP[{name}]"] = [
            (4.0, (f"Det[{number}]", f"N[{name}]")),
            (1.0, (f"Det[{number}]", "Adj", f"N[{name}]")),
        ]
        chance = {n: 0.75 if n == number else 0.25 for n in NUMBERS}  # as in text, few attractors differ in number
        relative = [(p, (f"NP[{name}]", "that", f"NP[a,{n}]", f"Vt[{n}]")) for n, p in chance.items()]
        phrase = [(p, (f"NP[{name}]", "P", f"NP[{kind},{n}]")) for n, p in chance.items()]
        rules[f"Subject[{name}]"] = [(4.0, (f"NP[{name}]",)), *phrase, *relative]


def _verb_phrases(rules: dict[str, list[tuple[float, tuple[str, ...]]]], number: str) -> None:
    """VP[kind,number]: what animate nouns and things can do; himself, herself and themselves need their nouns."""
    present, be, have = number, BE[number], HAVE[number]
    state = [(1.5, (form, "Adj")) for form in be]
    passive = [(w, (form, "Vt[part]", *agent)) for form in be for w, agent in ((0.4, ()), (0.8, ("by", "NP[a]")))]
    act = [
        (2.0, (f"Vt[{present}]", "NP[x]")),
        (1.0, ("Vt[past]", "NP[x]")),
        (1.0, (f"Vi[{present}]",)),
        (0.7, ("Vi[past]",)),
        (1.2, (have, "Vt[part]", "NP[x]")),
    ]
    rules[f"VP[i,{number}]"] = [*state, *passive]
    rules[f"VP[a,{number}]"] = [*state, *passive, *act]
    for kind, word in (("m", "himself"), ("f", "herself")):
        reflexive = word if number == "sg" else "themselves"
        own = [(2.0, (f"Vt[{present}]", reflexive)), (2.0, ("Vt[past]", reflexive))]
        rules[f"VP[{kind},{number}]"] = [*state, *passive, *act, *own]


def _words(lexicon: Lexicon) -> dict[str, tuple[str, ...]]:
    """Preterminals. Lists made from the same nouns or verbs are in the same order."""
    kinds = {"m": ("m",), "f": ("f",), "a": ("m", "f", "a"), "i": ("i",), "x": ("m", "f", "a", "i")}
    found: dict[str, tuple[str, ...]] = {"P": ("near", "behind", "beside", "under")}
    for kind, chosen in kinds.items():
        nouns = lexicon.nouns_of(*chosen)
        found[f"N[{kind},sg]"] = tuple(n.singular for n in nouns)
        found[f"N[{kind},pl]"] = tuple(n.plural for n in nouns)
    transitive = lexicon.verbs_of("transitive")
    strong = tuple(v for v in transitive if strong_participle(v))
    groups: dict[str, tuple[Verb, ...]] = {
        "Vt": transitive, "Vs": strong, "Vi": lexicon.verbs_of("intransitive"), "Vc": lexicon.verbs_of("cognitive"),
    }  # fmt: skip
    for name, verbs in groups.items():
        for form, attribute in (("sg", "third"), ("pl", "base"), ("past", "past"), ("part", "participle")):
            found[f"{name}[{form}]"] = tuple(getattr(v, attribute) for v in verbs)
    found["Adj"] = tuple(a.word for a in lexicon.adjectives)
    return found
