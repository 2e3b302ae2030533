"""The words of the generated minimal pairs: English nouns, verbs and adjectives, filtered by the training text.

    lexicon = from_text(texts, at_least=5)      # words that the model has met, the most frequent first
    lexicon = small()                           # about 300 word forms, for models trained on the grammar itself

A test of grammar must not be one of vocabulary: a word is kept only if each of its forms occurs often enough. No form
belongs to two words, and no verb has equal present and past, so that a wrong form is never another word's right one.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence

from jaxpt.data.documents import DataError

# Regular words by their lemma, irregular ones with their forms after slashes. Nouns: singular/plural.
MALE = (
    "king man/men boy father son brother uncle husband prince monk lord gentleman/gentlemen grandfather nephew waiter "
    "duke actor wizard emperor sailor priest grandson policeman/policemen fisherman/fishermen"
)
FEMALE = (
    "queen woman/women girl mother daughter sister aunt wife/wives princess nun lady grandmother niece waitress duchess "
    "actress witch empress mistress goddess widow granddaughter heroine maiden"
)
ANIMATE = (
    "child/children doctor teacher writer friend dog cat horse student author user reader programmer visitor player "
    "person/people bird lawyer farmer driver artist servant soldier stranger neighbour scientist engineer manager owner "
    "worker speaker expert lion wolf/wolves rabbit tiger bear poet merchant baker singer dancer nurse hunter editor "
    "client customer developer parent caller member leader judge citizen guest cousin rider scholar captain"
)
THINGS = (
    "key cabinet house book table door box tree stone letter window garden river mountain road bridge ship sword castle "
    "lamp chair bottle knife/knives car village city school church field ring crown picture map wall tower basket coat "
    "hat machine paper flower song story apple cake shoe plate cup bag bed boat candle clock coin desk drum engine fence "
    "flag glass gun hammer jar kettle mirror needle pipe rope saddle statue tent wagon wheel file module function class "
    "object list value name line number character message error directory folder option variable string array index "
    "process device program package script server system language document section chapter page sentence word example "
    "method attribute argument parameter expression statement operator result type command column row "
    "database header image kernel library network node packet path pattern pointer port queue record register sequence "
    "signal socket stack symbol task template thread token tuple version warning world year idea law state part group "
    "room street hill island lake valley forest building office station theatre hospital kitchen palace temple shop "
    "piano violin guitar trumpet carpet blanket pillow curtain ladder shovel"
)
# Verbs with an animate subject that need an object: base, or base/third/past/participle.
TRANSITIVE = (
    "take/takes/took/taken find/finds/found see/sees/saw/seen make/makes/made choose/chooses/chose/chosen "
    "break/breaks/broke/broken steal/steals/stole/stolen draw/draws/drew/drawn hide/hides/hid/hidden "
    "throw/throws/threw/thrown wear/wears/wore/worn shake/shakes/shook/shaken bite/bites/bit/bitten "
    "drive/drives/drove/driven ride/rides/rode/ridden forgive/forgives/forgave/forgiven eat/eats/ate/eaten "
    "write/writes/wrote/written forsake/forsakes/forsook/forsaken mistake/mistakes/mistook/mistaken "
    "overtake/overtakes/overtook/overtaken overthrow/overthrows/overthrew/overthrown tear/tears/tore/torn "
    "undertake/undertakes/undertook/undertaken withdraw/withdraws/withdrew/withdrawn oversee/oversees/oversaw/overseen "
    "bring/brings/brought buy/buys/bought build/builds/built catch/catches/caught hold/holds/held keep/keeps/kept "
    "lose/loses/lost send/sends/sent sell/sells/sold teach/teaches/taught bind/binds/bound seek/seeks/sought "
    "need want use love carry follow protect describe admire mention praise visit invite remove "
    "create define include require provide contain receive destroy examine discuss ignore accept annoy "
    "enjoy avoid raise obtain possess prefer/prefers/preferred produce rescue repair respect reveal select surround "
    "identify introduce attack consider convince deliver discover encourage greet hire inspect kick "
    "observe offend persuade punish recommend reject remind satisfy "
    "shock touch wash"
)
# Verbs with an animate subject and no object.
INTRANSITIVE = (
    "sleep/sleeps/slept arrive laugh smile wait die go/goes/went/gone fall/falls/fell/fallen rise/rises/rose/risen cry "
    "sit/sits/sat lie/lies/lay/lain appear vanish disappear exist listen talk swim/swims/swam/swum yawn sneeze "
    "weep/weeps/wept kneel/kneels/knelt complain hesitate apologise struggle shiver emerge depart "
    "respond sigh wander proceed remain pray live depend occur/occurs/occurred happen react retire cough dine"
)
# Verbs that take a clause with "that", "whether" or "what".
COGNITIVE = (
    "know/knows/knew/known remember hear/hears/heard learn say/says/said forget/forgets/forgot/forgotten notice guess"
)
ADJECTIVES = (
    "old new good bad small large big long short young strong weak happy sad rich poor quick slow clean dirty red green "
    "blue black white important simple local different special common strange beautiful famous dangerous useful"
)


@dataclasses.dataclass(frozen=True)
class Noun:
    """`kind`: "m" and "f" take himself and herself, "a" is animate, "i" is not."""

    singular: str
    plural: str
    kind: str

    @property
    def forms(self) -> tuple[str, ...]:
        """All forms, the lemma first."""
        return (self.singular, self.plural)


@dataclasses.dataclass(frozen=True)
class Verb:
    """`base` is the plural present too. `kind`: "transitive", "intransitive" or "cognitive"."""

    base: str
    third: str
    past: str
    participle: str
    kind: str

    @property
    def forms(self) -> tuple[str, ...]:
        """All forms, the lemma first."""
        return (self.base, self.third, self.past, self.participle)


@dataclasses.dataclass(frozen=True)
class Adjective:
    """A word with one form."""

    word: str

    @property
    def forms(self) -> tuple[str, ...]:
        """The word."""
        return (self.word,)


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """The words of a grammar."""

    nouns: tuple[Noun, ...]
    verbs: tuple[Verb, ...]
    adjectives: tuple[Adjective, ...]

    def nouns_of(self, *kinds: str) -> tuple[Noun, ...]:
        """The nouns of these kinds."""
        return tuple(n for n in self.nouns if n.kind in kinds)

    def verbs_of(self, kind: str) -> tuple[Verb, ...]:
        """The verbs of this kind."""
        return tuple(v for v in self.verbs if v.kind == kind)

    def lemmas(self) -> dict[str, str]:
        """form -> lemma"""
        words: tuple[Noun | Verb | Adjective, ...] = (*self.nouns, *self.verbs, *self.adjectives)
        return {form: word.forms[0] for word in words for form in word.forms}


def candidates() -> Lexicon:
    """Every word we know, in the order of the lists."""
    nouns = [n for kind, text in zip("mfai", (MALE, FEMALE, ANIMATE, THINGS), strict=True) for n in _nouns(text, kind)]
    kinds = {"transitive": TRANSITIVE, "intransitive": INTRANSITIVE, "cognitive": COGNITIVE}
    verbs = [v for kind, text in kinds.items() for v in _verbs(text, kind)]
    return _distinct(Lexicon(tuple(nouns), tuple(verbs), tuple(Adjective(w) for w in ADJECTIVES.split())))


def from_text(
    texts: Iterable[str], *, at_least: int = 5, nouns: int = 200, verbs: int = 120, fewest: int = 4
) -> Lexicon:
    """The candidates all of whose forms occur `at_least` times in the texts, the most frequent `nouns` and `verbs` of them.

    Raises:
      DataError: fewer than `fewest` words are left of a kind that the grammar needs.
    """
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(re.findall(r"[a-z]+", text.lower()))
    known = candidates()

    def kept(words: Sequence[Noun | Verb | Adjective], most: int) -> tuple:
        rarest: dict[Noun | Verb | Adjective, int] = {w: min(counts[f] for f in w.forms) for w in words}
        chosen = sorted((w for w in words if rarest[w] >= at_least), key=lambda w: -rarest[w])[:most]
        return tuple(w for w in words if w in set(chosen))

    found = Lexicon(kept(known.nouns, nouns), kept(known.verbs, verbs), kept(known.adjectives, len(known.adjectives)))
    for kind, size in sizes(found).items():
        if size < fewest:
            raise DataError(
                f"only {size} {kind} have every form at least {at_least} times in the text, {fewest} are needed; "
                "give more text or a smaller at_least"
            )
    return found


def small() -> Lexicon:
    """The first candidates of each kind: with the grammar's function words about 300 word forms."""
    known = candidates()

    def first(kind: str, n: int) -> tuple[Noun, ...]:
        return known.nouns_of(kind)[:n]

    transitive = known.verbs_of("transitive")
    strong = [v for v in transitive if v.past != v.participle][:10]
    weak = [v for v in transitive if v.past == v.participle][:14]
    chosen = {*strong, *weak, *known.verbs_of("intransitive")[:12], *known.verbs_of("cognitive")[:4]}
    verbs = tuple(v for v in known.verbs if v in chosen)
    return Lexicon((*first("m", 10), *first("f", 10), *first("a", 12), *first("i", 18)), verbs, known.adjectives[:14])


def sizes(lexicon: Lexicon) -> dict[str, int]:
    """How many words there are of each kind that the grammar needs."""
    strong = [v for v in lexicon.verbs_of("transitive") if strong_participle(v)]
    return {
        "male nouns": len(lexicon.nouns_of("m")),
        "female nouns": len(lexicon.nouns_of("f")),
        "inanimate nouns": len(lexicon.nouns_of("i")),
        **{f"{kind} verbs": len(lexicon.verbs_of(kind)) for kind in ("transitive", "intransitive", "cognitive")},
        "verbs with a participle of its own": len(strong),
        "adjectives": len(lexicon.adjectives),
    }


def strong_participle(verb: Verb) -> bool:
    """Whether the participle differs from all other forms (eaten)."""
    return verb.participle not in (verb.past, verb.base)


def _nouns(text: str, kind: str) -> list[Noun]:
    pairs = [w.split("/") for w in text.split()]
    return [Noun(p[0], p[1] if len(p) > 1 else _with_s(p[0]), kind) for p in pairs]


def _verbs(text: str, kind: str) -> list[Verb]:
    found = []
    for word in text.split():
        forms = word.split("/")
        if len(forms) == 1:
            past = _with_ed(word)
            forms = [word, _with_s(word), past, past]
        found.append(Verb(forms[0], forms[1], forms[2], forms[3] if len(forms) > 3 else forms[2], kind))
    return found


def _with_s(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh", "z")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


def _with_ed(word: str) -> str:
    if word.endswith("e"):
        return word + "d"
    return word[:-1] + "ied" if word.endswith("y") and word[-2] not in "aeiou" else word + "ed"


def _distinct(lexicon: Lexicon) -> Lexicon:
    """Without words that share a form with an earlier one, or whose own forms are ambiguous."""
    seen: set[str] = set()

    def clear(word: Noun | Verb | Adjective) -> bool:
        ambiguous = isinstance(word, Verb) and word.base in (word.past, word.participle)
        if ambiguous or seen & set(word.forms) or (isinstance(word, Noun) and word.singular == word.plural):
            return False
        seen.update(word.forms)
        return True

    def keep(words: Sequence) -> tuple:
        return tuple(filter(clear, words))

    return Lexicon(keep(lexicon.nouns), keep(lexicon.verbs), keep(lexicon.adjectives))
