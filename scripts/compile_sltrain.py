"""The tables of docs/pods.md: SLTrain (arXiv 2406.02214) and its full-rank arm at the paper's sizes, on TPU slices.

    python scripts/compile_sltrain.py 1b sltrain --topology v5e:smallest --microbatch 16
    python scripts/compile_sltrain.py 1b sltrain --topology v5e:4x4 --batch 256 --weak-scaling v5e:16x16

Shapes, ranks and densities are those of the authors' scripts: 512 sequences of 256 tokens, bfloat16 weights and moments.
The number of values of S is rounded down to a multiple of 256, so that they split over as many chips. Ours is Adam with
16-bit moments at every size; the authors' 7B run has 8-bit moments.
"""

from __future__ import annotations

import argparse

from jaxpt import weights
from jaxpt.models import decoder
from jaxpt.optim import adam
from jaxpt.sharding import aot

# width, ffn, layers, heads, rank, density, alpha
SIZES = {
    "60m": (512, 1376, 8, 8, 128, 0.03, 32.0),
    "130m": (768, 2048, 12, 12, 256, 0.03, 16.0),
    "350m": (1024, 2736, 24, 16, 256, 0.03, 16.0),
    "1b": (2048, 5461, 24, 32, 512, 0.03, 8.0),
    "7b": (4096, 11008, 32, 32, 1024, 0.05, 8.0),
}
ARMS = ("sltrain", "full")


def job(size: str, arm: str) -> aot.Job:
    """The paper's step of this size, block inputs alone kept for the backward pass."""
    width, ffn, layers, heads, rank, density, alpha = SIZES[size]
    form = weights.SparseLowRank(rank, density, alpha, multiple=256)
    cfg = decoder.Config(
        vocab_size=32000,
        layers=layers,
        width=width,
        heads=heads,
        ffn=ffn,
        weights=(("blocks", form),) if arm == "sltrain" else (),
        param_dtype="bfloat16",
        compute_dtype="bfloat16",
        remat="full",
    )
    return aot.Job(cfg, adam(3e-3), batch=512, length=256, name=f"{size} {arm}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("arm", choices=ARMS)
    aot.add_arguments(parser)
    options = parser.parse_args()
    raise SystemExit(aot.run(options, job(options.size, options.arm)))
