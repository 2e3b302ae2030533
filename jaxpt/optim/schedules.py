"""Learning-rate schedules: update number (from 0) -> rate."""

from __future__ import annotations

import jax.numpy as jnp
import optax


def warmup_cosine(peak: float, steps: int, warmup: int, floor: float = 0.1) -> optax.Schedule:
    """Linear from peak / warmup at update 0 to peak at update warmup - 1, then a cosine to floor * peak at the last update.

    The first update already moves: the released code of SLTrain and GaLore starts at rate 0, which wastes a batch.
    """
    _check(steps, warmup, floor)

    def schedule(count):  # noqa: ANN001, ANN202 - optax's protocol
        ramp = (count + 1) / max(warmup, 1)
        progress = jnp.clip((count - warmup) / max(steps - 1 - warmup, 1), 0.0, 1.0)
        decay = floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return peak * jnp.where(count < warmup, ramp, decay)

    return schedule


def constant(peak: float, steps: int, warmup: int, floor: float = 0.1) -> optax.Schedule:
    """Linear warm-up, then `peak`."""
    _check(steps, warmup, floor)
    return lambda count: peak * jnp.minimum((count + 1) / max(warmup, 1), 1.0)


def warmup_linear(peak: float, steps: int, warmup: int, floor: float = 0.0) -> optax.Schedule:
    """Linear warm-up as in `warmup_cosine`, then a line that would reach floor * peak one update after the last."""
    _check(steps, warmup, floor)

    def schedule(count):  # noqa: ANN001, ANN202 - optax's protocol
        left = jnp.clip((steps - count) / max(steps - warmup, 1), 0.0, 1.0)
        return peak * jnp.where(count < warmup, (count + 1) / max(warmup, 1), floor + (1 - floor) * left)

    return schedule


def inverse_sqrt(peak: float, steps: int, warmup: int, floor: float = 0.0) -> optax.Schedule:
    """`peak` for the first `warmup` updates, then peak sqrt(warmup / update), never below floor * peak.

    T5's 1 / sqrt(max(step, 10^4)) is a peak of 10^-2 and a warm-up of 10^4 updates; the rate does not rise in it.
    """
    _check(steps, warmup, floor)
    first = max(warmup, 1)
    return lambda count: peak * jnp.maximum(floor, jnp.sqrt(first / jnp.maximum(count, first)))


def with_cooldown(schedule: optax.Schedule, steps: int, down: int) -> optax.Schedule:
    """`schedule`, and from update steps - down on a line from its rate there to 0 one update after the last.

    Raises:
      ValueError: a cooldown longer than the run.
    """
    if not 0 < down <= steps:
        raise ValueError(f"need a cooldown of 1 to {steps} updates, got {down}")
    first = steps - down
    return lambda count: schedule(jnp.minimum(count, first)) * jnp.clip((steps - count) / down, 0.0, 1.0)


def _check(steps: int, warmup: int, floor: float) -> None:
    if not 0 <= warmup <= steps or not 0 <= floor <= 1:
        raise ValueError(f"need 0 <= warmup <= steps and 0 <= floor <= 1, got {warmup=}, {steps=}, {floor=}")


SCHEDULES = {"cosine": warmup_cosine, "constant": constant, "linear": warmup_linear, "inverse_sqrt": inverse_sqrt}
