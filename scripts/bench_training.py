"""Training throughput of our decoder against plain PyTorch on the same device, in turns, in one run.

    python scripts/bench_training.py                                   # the CPU shape: needs the `oracle` extra
    python scripts/bench_training.py --shape 124m --shape 1b           # on an accelerator, bfloat16 compute
    python scripts/bench_training.py --shape 124m --without-torch      # ours alone, where PyTorch is not installed

Both sides are the same LLaMA with AdamW, fused cross-entropy or ours in chunks, and the same random tokens; PyTorch
runs nn.Linear and scaled_dot_product_attention, on an accelerator under autocast and torch.compile. They take turns,
round by round, so that a machine that drifts drifts for both. Reported: tokens/s (median over rounds), the paired ratio,
and model FLOP utilisation where the chip's peak is known (6 N per token plus attention, `models.flops`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpt import pretrain
from jaxpt.core import spec
from jaxpt.core.processes import restart_with_huge_pages
from jaxpt.models import decoder
from jaxpt.optim import AdamConfig
from jaxpt.pretrain import DataConfig, Pretrain
from jaxpt.training.metrics import peak_flops
from jaxpt.training.step import put_batch


@dataclasses.dataclass(frozen=True)
class Shape:
    """A LLaMA and a batch."""

    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int
    sequence: int
    batch: int
    half: bool = True
    remat: str = "none"
    unroll: int = 1


SHAPES = {
    "cpu": Shape(4, 256, 4, 688, 4096, 256, 16, half=False),
    "124m": Shape(12, 768, 12, 2048, 50_304, 1024, 32),
    "1b": Shape(16, 2048, 16, 5504, 32_000, 2048, 8, remat="dots"),
}

Runner = Callable[[], float]  # does one update, returns the loss


def jax_runner(shape: Shape, ids: np.ndarray) -> tuple[Runner, int, float]:
    """One update of ours; the number of parameters; nominal operations of an update."""
    compute = "bfloat16" if shape.half else "float32"
    model = decoder.Config(
        width=shape.width, heads=shape.heads, ffn=shape.ffn, layers=shape.layers, vocab_size=shape.vocabulary,
        compute_dtype=compute, remat=shape.remat, unroll=shape.unroll,
    )  # fmt: skip
    data = DataConfig(sequence_length=shape.sequence, batch_size=shape.batch)
    cfg = Pretrain(model=model, data=data, optimizer=AdamConfig(rate=1e-3, schedule="constant", warmup=0.0))
    job = pretrain.build(cfg)
    holder = [job.create()]
    batch = {"inputs": ids[:, :-1], "labels": ids[:, 1:], "loss_weight": np.ones((shape.batch, shape.sequence), "f4")}
    batch = put_batch({name: np.ascontiguousarray(x) for name, x in batch.items()}, job.mesh)

    def run() -> float:
        holder[0], metrics = job.step.run(holder[0], batch)
        return float(metrics["loss"])

    return run, spec.count(job.spec), pretrain.flops_per_step(cfg)(job.spec).nominal


def torch_runner(shape: Shape, ids: np.ndarray) -> tuple[Runner, int]:
    """The same for PyTorch."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = torch_decoder(shape).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    fused = {"fused": True} if device == "cuda" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, **fused)
    inputs, labels = (torch.from_numpy(x.astype(np.int64)).to(device) for x in (ids[:, :-1], ids[:, 1:]))
    if device == "cuda":
        model = torch.compile(model)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=shape.half):
            loss = model(inputs, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, parameters


def torch_decoder(shape: Shape) -> Any:
    """The whole model in PyTorch; called with (ids, labels), it returns the mean loss."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    width, heads = shape.width, shape.heads

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.RMSNorm(width, eps=1e-6) for _ in range(2)])
            self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            self.gate, self.up = (nn.Linear(width, shape.ffn, bias=False) for _ in range(2))
            self.down = nn.Linear(shape.ffn, width, bias=False)

        def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
            b, s, d = x.shape
            q, k, v = self.qkv(self.norms[0](x)).view(b, s, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, s, d))
            h = self.norms[1](x)
            return x + self.down(F.silu(self.gate(h)) * self.up(h))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(shape.vocabulary, width)
            self.blocks = nn.ModuleList([Block() for _ in range(shape.layers)])
            self.norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, shape.vocabulary, bias=False)
            for p in self.parameters():
                if p.ndim > 1:
                    nn.init.normal_(p, std=0.02)
            inverse = 10_000 ** (-torch.arange(0, width // heads, 2) / (width // heads))
            angles = torch.arange(shape.sequence)[:, None] * inverse
            self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1))
            self.register_buffer("sin", torch.cat([angles.sin()] * 2, -1))

        def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            x = self.embedding(ids)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            return F.cross_entropy(self.head(self.norm(x)).view(-1, shape.vocabulary), labels.reshape(-1))

    return Decoder()


def measure(shape: Shape, rounds: int, steps: int, with_torch: bool) -> dict[str, Any]:
    """Both in turns."""
    ids = np.random.default_rng(0).integers(0, shape.vocabulary, (shape.batch, shape.sequence + 1), dtype=np.int32)
    ours, parameters, flops = jax_runner(shape, ids)
    runners: dict[str, Runner] = {"jaxpt": ours}
    if with_torch:
        runners["pytorch"], theirs = torch_runner(shape, ids)
        if theirs != parameters:
            raise ValueError(f"the models differ: {parameters:,} parameters here, {theirs:,} in PyTorch")
    for run in runners.values():
        run(), run()  # compile, warm up
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            start = time.perf_counter()
            losses = [run() for _ in range(steps)]
            rates[name].append(steps * shape.batch * shape.sequence / (time.perf_counter() - start))
            print(f"{name:8s} {rates[name][-1]:9.0f} tokens/s   loss {losses[-1]:.4f}", flush=True)
    median = {name: statistics.median(found) for name, found in rates.items()}
    report: dict[str, Any] = {"shape": dataclasses.asdict(shape), "parameters": parameters, "tokens_per_second": median}
    if with_torch:
        ratios = [a / b for a, b in zip(rates["jaxpt"], rates["pytorch"], strict=True)]
        report |= {"ratio_median": statistics.median(ratios), "ratio_min_max": [min(ratios), max(ratios)]}
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is not None:
        per_token = flops / (shape.batch * shape.sequence) / peak / jax.device_count()
        report["model_flop_utilisation"] = {name: rate * per_token for name, rate in median.items()}
    return report


def main() -> None:
    """Measures every shape that was asked for and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", action="append", choices=SHAPES, help="may be given several times; cpu by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="updates a round")
    parser.add_argument("--without-torch", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="of the shape, for example batch=16")
    args = parser.parse_args()
    changes = {k: type(getattr(SHAPES["cpu"], k))(v) for k, v in (o.split("=") for o in args.overrides)}
    device = jax.devices()[0]
    report: dict[str, Any] = {
        "device": device.device_kind if device.platform != "cpu" else f"cpu, {os.cpu_count()} cores",
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
    }
    if not args.without_torch:
        import torch

        report["versions"]["torch"] = torch.__version__
    for name in args.shape or ["cpu"]:
        shape = dataclasses.replace(SHAPES[name], **changes)
        report[name] = measure(shape, args.rounds, args.steps, not args.without_torch)
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    restart_with_huge_pages()  # as the recipes' command line does; PyTorch has them too
    main()
