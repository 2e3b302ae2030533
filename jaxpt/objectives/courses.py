"""MCL: a generator and a discriminator that take several courses and correct themselves (arXiv 2305.03981).

Three corruptions of a text, each with a task for the discriminator; lambda = 50, means as in `replaced_tokens`:

    replaced    the generator fills [MASK] at 15 % of the tokens, and learns there; which tokens are replaced?
    swapped     15 % of the tokens change places; the generator sees these, learns to restore them, and its guesses are put
                there; which tokens are others than were there?
    inserted    [MASK] is inserted at 15 % as many random places and filled, where there is nothing to learn for the
                generator; which tokens were inserted? All of them, however good the guesses: labels stay balanced.

    L = L_MLM + L_SLM + lambda (L_RTD + L_STD + L_ITD) + (L_reMLM + L_reSLM + lambda (L_reRTD + L_reSTD + L_reITD))

The second half is self-correction. The discriminator's verdicts p > 1/2 part the tokens in four (`Verdicts`). The
generator's guesses that were caught are hidden again in the text with its guesses, and it predicts what was there. The
discriminator looks again at a text in which what it caught is restored, and only what it got wrong counts.

No training code was released. Reconstructed here: equal weights of the first and second half; one head for all courses; a
swap is a random cycle through the chosen positions; a row is cut by as many tokens as are inserted; inserted tokens cannot
be restored, so that their second look is the first one; a second half's mean is that over a row's own mistakes, and over
rows by their length (0 for a row without mistakes), since how many there will be is not known before a batch is cut into
microbatches. Verdicts and samples have no gradient. A step costs up to 4 1/3 passes of the generator and 5 of the
discriminator, where ELECTRA has one each. The soup of courses is `jaxpt.combine.soups`. Proven by recipes/mcl.py.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpt.core.names import nearest_error
from jaxpt.core.rng import fold
from jaxpt.core.types import Array, Bool, Float, Int, Metrics, Params, PRNGKeyArray
from jaxpt.models import flops
from jaxpt.objectives import replaced_tokens as rtd
from jaxpt.objectives.base import Losses
from jaxpt.objectives.corruption import operations, positions
from jaxpt.objectives.corruption.masking import special_tokens
from jaxpt.objectives.corruption.rows import over_rows, real_tokens
from jaxpt.weights import Cost

COURSES = ("replaced", "swapped", "inserted")
AROUND = ("segment_ids", "positions", "token_types")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Courses(rtd.ReplacedTokens):
    """Attributes:
    courses: some of COURSES.
    correct: whether the second half is there.
    """

    courses: tuple[str, ...] = COURSES
    correct: bool = True

    def check(self) -> None:
        super().check()
        for course in self.courses:
            if course not in COURSES:
                raise nearest_error("course", course, COURSES)
        if not self.courses or len(set(self.courses)) < len(self.courses) or self.only_chosen:
            raise ValueError(f"need courses, each once, that judge all tokens; got {self.courses}, {self.only_chosen=}")

    def prepare(self, key: PRNGKeyArray, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return corrupt(key, batch, self)

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray) -> Losses:
        return of_corrupted(params, batch, self)

    def cost(self, params: Params, batch_size: int, sequence_length: int) -> Cost:
        learned = len(set(self.courses) - {"inserted"})
        again = learned * self.correct  # nobody looks again at inserted tokens
        filling = learned + again + (1 / 3 if "inserted" in self.courses else 0)  # a forward pass alone
        judging = len(self.courses) + again
        costs = zip(self.costs(params, batch_size, sequence_length), (filling, judging), strict=True)
        return flops.total(*(Cost(n * c.nominal, n * c.executed) for c, n in costs))


class Lesson(NamedTuple):
    """A course's corruption of a batch.

    Attributes:
      shown: what the generator sees.
      position, labels, weight: what it fills, as in `masking.Masked`.
      base: the text that its guesses are put into: the original, but with [MASK] where tokens were inserted.
      scale: what makes a sum over what it fills a mean, see `replaced_tokens`.
      keys: of the rows' samples.
    """

    shown: Int[Array, "B S"]
    position: Int[Array, "B N"]
    labels: Int[Array, "B N"]
    weight: Float[Array, "B N"]
    base: Int[Array, "B S"]
    scale: Float[Array, " B"]
    keys: Array


class Verdicts(NamedTuple):
    """Which of the real tokens are real and judged so, real and suspected, replaced and missed, replaced and caught."""

    trusted: Bool[Array, "B S"]
    suspected: Bool[Array, "B S"]
    missed: Bool[Array, "B S"]
    caught: Bool[Array, "B S"]


def verdicts(found: rtd.Detection, real: Bool[Array, "B S"]) -> Verdicts:
    """Of the discriminator, at p > 1/2."""
    called, fake = found.logits > 0, found.fake
    return Verdicts(*(x & real for x in (~fake & ~called, ~fake & called, fake & ~called, fake & called)))


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray, cfg: Courses) -> Losses:
    """Losses of a batch, as for `replaced_tokens.loss`. Rows with [MASK]s inserted have real tokens first, padding last."""
    return of_corrupted(params, corrupt(key, batch, cfg), cfg)


def corrupt(key: PRNGKeyArray, batch: dict[str, jax.Array], cfg: Courses) -> dict[str, jax.Array]:
    """What `replaced_tokens.corrupt` gives, and the same of the other courses by names that begin with theirs."""
    out = rtd.corrupt(key, batch, cfg)
    if "swapped" in cfg.courses:
        out |= _named("swapped", swapped(fold(key, "swapped"), batch, cfg))
    if "inserted" in cfg.courses:
        lesson, moved = inserted(fold(key, "inserted"), batch, cfg)
        out |= _named("inserted", lesson) | {f"inserted_{name}": x for name, x in moved.items()}
    return out


def swapped(key: PRNGKeyArray, batch: dict[str, Array], cfg: Courses) -> Lesson:
    """Tokens change places, special ones never."""
    ids, real, size = batch["inputs"], real_tokens(batch), cfg.masking.size(batch["inputs"].shape[1])

    def row(key: PRNGKeyArray, ids: Array, real: Array, allowed: Array) -> tuple[Array, positions.Chosen]:
        return operations.swap(key, ids, allowed, positions.count(cfg.masking.rate, real.sum()), size)

    shown, chosen = over_rows(row, fold(key, "swap"), batch, ids, real, real & ~special_tokens(ids, cfg.masking))
    return _lesson(key, batch, shown, chosen, ids, jnp.take_along_axis(ids, chosen.position, 1))


def inserted(key: PRNGKeyArray, batch: dict[str, Array], cfg: Courses) -> tuple[Lesson, dict[str, Array]]:
    """[MASK]s at random places; and, of AROUND, what the batch has, for the tokens that now stand at each place."""
    ids, real, size = batch["inputs"], real_tokens(batch), cfg.masking.size(batch["inputs"].shape[1])

    def row(key: PRNGKeyArray, ids: Array, real: Array) -> tuple[Array, Array]:
        length = real.sum()
        number = jnp.minimum(positions.count(cfg.masking.rate, length), size)
        return operations.insert(key, ids, length, number, cfg.masking.mask_id)

    shown, new = over_rows(row, fold(key, "insert"), batch, ids, real)
    chosen = jax.vmap(lambda mask: positions.of_mask(mask, size))(new)
    source = jnp.where(real, jnp.maximum(jnp.cumsum(~new, -1) - 1, 0), jnp.arange(ids.shape[1]))
    carried = [name for name in ("segment_ids", "token_types") if name in batch]
    moved: dict[str, Array] = {name: jnp.take_along_axis(batch[name], source, 1) for name in carried}
    if "positions" in batch:
        moved["positions"] = _counted(moved["segment_ids"]) if "segment_ids" in moved else batch["positions"]
    return _lesson(key, batch, shown, chosen, shown, jnp.take_along_axis(shown, chosen.position, 1)), moved


def lessons(batch: dict[str, Array], cfg: Courses) -> dict[str, tuple[Lesson, dict[str, Array]]]:
    """Of what `corrupt` returns, by course: the lesson, and the batch that says what surrounds its tokens."""
    found = {}
    for course in cfg.courses:
        if course == "replaced":
            lesson = Lesson(
                batch["masked_inputs"], batch["predict_index"], batch["predict_labels"], batch["predict_weight"],
                batch["inputs"], batch["generator_scale"], batch["sample_key"],
            )  # fmt: skip
        else:
            lesson = Lesson(*(batch[f"{course}_{name}"] for name in Lesson._fields))
        around = {name: batch[f"{course}_{name}"] for name in AROUND if f"{course}_{name}" in batch}
        found[course] = lesson, batch | around
    return found


def of_corrupted(params: Params, batch: dict[str, jax.Array], cfg: Courses) -> Losses:
    """The same of what `corrupt` returns, or of every n-th row of it.

    Metrics of other courses than "replaced" begin with their names. wrong is the share of the tokens that the generator
    filled, in all courses, of which the discriminator's verdict is wrong; fakes, that of replaced ones among all judged.
    """
    models, real = cfg.parts(params), batch["judge_weight"] > 0
    sums, counts = jnp.zeros(len(real)), jnp.zeros(4)
    metrics: Metrics = {}
    for course, (lesson, around) in lessons(batch, cfg).items():
        name = "" if course == "replaced" else f"{course}_"
        states = rtd.fill(models[0], lesson.shown, lesson.position, around, cfg.generator_model)
        filled = rtd.put(lesson.base, lesson.position, lesson.weight, rtd.sample(models[0], states, lesson.keys))
        found = rtd.detect(models[1], lesson.base, filled, around, cfg.discriminator_model)
        chosen = rtd.spread(lesson.position, lesson.weight, filled.shape[1])
        if course == "inserted":
            found = found._replace(fake=chosen)
        each = rtd.binary(found)
        judged = (batch["judge_weight"] * each).sum(-1)
        metrics[f"{name}discriminator_loss"] = (judged.sum(), batch["judge_weight"].sum())
        metrics |= rtd.detection_metrics(found, real, name)
        part = cfg.discriminator_weight * judged
        if course != "inserted":
            missed, _ = rtd.generator_loss(models[0], states, lesson.labels, lesson.weight)
            metrics[f"{name}generator_loss"] = (missed.sum(), lesson.weight.sum())
            part = cfg.generator_weight * lesson.scale * missed + part
        sums = sums + part
        said = verdicts(jax.lax.stop_gradient(found), real)
        if cfg.correct:
            sums = sums + corrected(models, course, lesson, filled, said, each, around, cfg)
        mistakes = (said.suspected | said.missed) & chosen
        counts = counts + jnp.stack([x.sum() for x in (mistakes, chosen, found.fake & real, real)])
    metrics |= {"wrong": (counts[0], counts[1]), "fakes": (counts[2], counts[3])}
    return Losses(sums, batch["judge_weight"].sum(-1), metrics)


def corrected(
    models: tuple[Params, Params],
    course: str,
    lesson: Lesson,
    filled: Int[Array, "B S"],
    said: Verdicts,
    judged: Float[Array, "B S"],
    around: dict[str, Array],
    cfg: Courses,
) -> Float[Array, " B"]:
    """A course's second half, of each row: the generator's and the discriminator's weighted losses on their mistakes.

    Args:
      models: generator and discriminator.
      filled, said, judged: the text with the generator's guesses, the verdicts on it, and the loss of each.
    """
    wrong, length = said.suspected | said.missed, around["judge_weight"].sum(-1)
    if course == "inserted":  # there is no original token to restore
        return cfg.discriminator_weight * length * mean(judged, wrong)
    hidden = jnp.where(said.caught, jnp.asarray(cfg.masking.mask_id, filled.dtype), filled)
    caught = jnp.take_along_axis(said.caught, lesson.position, 1) & (lesson.weight > 0)
    states = rtd.fill(models[0], hidden, lesson.position, around, cfg.generator_model)
    missed, _ = rtd.generator_loss(models[0], states, lesson.labels, caught.astype(jnp.float32))
    restored = jnp.where(said.caught, lesson.base, filled)
    again = rtd.binary(rtd.detect(models[1], lesson.base, restored, around, cfg.discriminator_model))
    filling = length * missed / jnp.maximum(caught.sum(-1), 1)
    return cfg.generator_weight * filling + cfg.discriminator_weight * length * mean(again, wrong)


def mean(values: Float[Array, "B S"], where: Bool[Array, "B S"]) -> Float[Array, " B"]:
    """Of each row; 0 where there is nothing."""
    return jnp.where(where, values, 0).sum(-1) / jnp.maximum(where.sum(-1), 1)


def _lesson(
    key: PRNGKeyArray,
    batch: dict[str, Array],
    shown: Int[Array, "B S"],
    chosen: positions.Chosen,
    base: Int[Array, "B S"],
    labels: Int[Array, "B N"],
) -> Lesson:
    weight = chosen.valid.astype(jnp.float32)
    scale = jnp.full(len(shown), rtd.share(real_tokens(batch).sum(), weight.sum()))
    return Lesson(shown, chosen.position, labels, weight, base, scale, rtd.row_keys(fold(key, "sample"), batch))


def _named(course: str, lesson: Lesson) -> dict[str, Array]:
    return {f"{course}_{name}": x for name, x in lesson._asdict().items()}


def _counted(segments: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Positions that start again where a segment does."""
    at = jnp.arange(segments.shape[1])
    starts = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], 1)
    return at - jax.lax.cummax(jnp.where(starts, at, 0), axis=1)
