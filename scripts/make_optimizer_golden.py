"""Writes tests/optim/golden/: what the authors' and others' PyTorch optimizers do to small weights, step by step.

    pip install -e ".[oracle]" && python scripts/make_optimizer_golden.py

The arrays are committed, so the tests need no PyTorch; run this only to change the set. Each file holds `start/NAME`,
`gradient/NAME` [steps, ...] and `CASE/NAME` [steps, ...], the weights after every step; names say the shapes.

galore.npz   GaLoreAdamW of `galore-torch`: "frozen" with a projector that is never found again, "refreshed" every 4 steps
             under our sign rule (the largest entry of a singular vector is positive), which is patched into it: moments
             outlive projectors, so signs that are the linear algebra library's would show
fira.npz     FiraAdamW of `fira`, the same
stable_spam.npz  StableSPAM of `pytorch-optimizer`, whose resets are clean, with spikes in the gradients
adam_8bit.npz    Adam8bit of `bitsandbytes` on a CPU; also its `codes` and `scales` of both moments after the last step
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).parent.parent / "tests" / "optim" / "golden"
SHAPES = {"tall": (12, 8), "wide": (8, 12), "square": (8, 8), "vector": (5,)}
MATRICES = ("tall", "wide", "square")
STEPS, RATE, RANK, SCALE = 10, 1e-2, 3, 0.25


def main() -> None:
    """Writes all files."""
    GOLDEN.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    gradient = {name: rng.normal(size=(STEPS, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    _write("galore", start, gradient, {"frozen": _projected(_galore, 100), "refreshed": _projected(_galore, 4)})
    _write("fira", start, gradient, {"frozen": _projected(_fira, 100), "refreshed": _projected(_fira, 4)})

    spiky = {name: np.concatenate([g, g[::-1] * 0.5]) for name, g in gradient.items()}
    spiky["tall"][6, 2, 3], spiky["vector"][9] = 40.0, 25.0
    spiky["wide"][12] *= 30
    _write("stable_spam", start, spiky, {"plain": _stable_spam(1_000, 20_000), "reset": _stable_spam(6, 40)})

    start = {"big": rng.normal(size=(8, 512)).astype(np.float32)}
    gradient = {"big": (rng.integers(-127, 128, (8, 8, 512)) / 64).astype(np.float32)}
    _write("adam_8bit", start, gradient, {"plain": _adam_8bit})


def _write(
    name: str, start: dict[str, Any], gradient: dict[str, Any], cases: dict[str, Callable[[dict[str, Any]], Any]]
) -> None:
    arrays = {f"start/{k}": x for k, x in start.items()} | {f"gradient/{k}": x for k, x in gradient.items()}
    for case, make in cases.items():
        params = {k: torch.nn.Parameter(torch.tensor(x)) for k, x in start.items()}
        optimizer, found = make(params), {k: [] for k in start}
        for step in range(len(next(iter(gradient.values())))):
            for k, p in params.items():
                p.grad = torch.tensor(gradient[k][step])
            optimizer.step()
            for k, p in params.items():
                found[k].append(p.detach().numpy().copy())
        arrays |= {f"{case}/{k}": np.stack(x) for k, x in found.items()}
        if name == "adam_8bit":
            state = optimizer.state[params["big"]]
            for i in ("1", "2"):
                arrays |= {f"codes/{i}": state["state" + i].numpy(), f"scales/{i}": state["absmax" + i].numpy()}
    np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)


def _projected(make: Callable[..., Any], gap: int) -> Callable[[dict[str, Any]], Any]:
    def build(params: dict[str, Any]) -> Any:
        extra = {"rank": RANK, "update_proj_gap": gap, "proj_type": "std"}
        return make([params[n] for n in params if n not in MATRICES], [params[n] for n in MATRICES], extra)

    return build


def _galore(plain: list[Any], matrices: list[Any], extra: dict[str, Any]) -> Any:
    from galore_torch import GaLoreAdamW
    from galore_torch.galore_projector import GaLoreProjector

    _fix_signs(GaLoreProjector)
    groups = [{"params": plain}, {"params": matrices, "scale": SCALE, **extra}]
    return GaLoreAdamW(groups, lr=RATE, weight_decay=0.1, no_deprecation_warning=True)


def _fira(plain: list[Any], matrices: list[Any], extra: dict[str, Any]) -> Any:
    from fira import FiraAdamW
    from fira.gradient_projection import GradientProjector

    _fix_signs(GradientProjector)
    groups = [{"params": plain}, {"params": matrices, "alpha": SCALE, **extra}]
    return FiraAdamW(groups, lr=RATE, no_deprecation_warning=True)


def _fix_signs(projector: Any) -> None:
    def signed(self: Any, weights: Any, rank: int, type: str) -> Any:
        left, _, right = torch.linalg.svd(weights, full_matrices=False)
        vectors = right[:rank].T if type == "right" else left[:, :rank]
        largest = torch.gather(vectors, 0, vectors.abs().argmax(0)[None])
        vectors = torch.where(largest < 0, -vectors, vectors)
        return vectors.T if type == "right" else vectors

    projector.get_orthogonal_matrix = signed


def _stable_spam(gap: int, total: int) -> Callable[[dict[str, Any]], Any]:
    from pytorch_optimizer import StableSPAM

    def build(params: dict[str, Any]) -> Any:
        settings = {"gamma1": 0.85, "gamma2": 0.999, "theta": 0.9, "t_max": total, "eta_min": 0.5}
        return StableSPAM(params.values(), lr=RATE, update_proj_gap=gap, **settings)

    return build


def _adam_8bit(params: dict[str, Any]) -> Any:
    from bitsandbytes.optim import Adam8bit

    return Adam8bit(params.values(), lr=RATE)


if __name__ == "__main__":
    main()
