"""Training throughput of our decoder against plain PyTorch on the same CPU, in turns, in one run.

    python scripts/bench_cpu.py [--rounds 5] [--steps 3] [--json docs/throughput_cpu.json]

The model is a 4-layer, 256-wide, 4-head LLaMA (feed-forward 688, vocabulary 4096), 16 sequences of 256 tokens, AdamW,
float32. PyTorch runs the same architecture written with nn.Linear, scaled_dot_product_attention and fused cross-entropy.
Needs the `oracle` extra. Both take turns, round by round, so that a machine that drifts drifts for both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jaxpt import optim
from jaxpt.core import spec
from jaxpt.models import decoder
from jaxpt.objectives import causal_lm
from jaxpt.training import state as states
from jaxpt.training.step import make_step

LAYERS, WIDTH, HEADS, FFN, VOCAB, SEQUENCE, BATCH = 4, 256, 4, 688, 4096, 256, 16


class TorchBlock(nn.Module):
    """A LLaMA block."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(2)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate, self.up = nn.Linear(WIDTH, FFN, bias=False), nn.Linear(WIDTH, FFN, bias=False)
        self.down = nn.Linear(FFN, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x [B, S, D] -> [B, S, D]."""
        b, s, d = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(b, s, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, s, d))
        h = self.norms[1](x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class TorchDecoder(nn.Module):
    """The whole model; returns the mean loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList([TorchBlock() for _ in range(LAYERS)])
        self.norm, self.head = nn.RMSNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, VOCAB, bias=False)
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)
        inverse = 10_000 ** (-torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
        angles = torch.arange(SEQUENCE)[:, None] * inverse
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1))
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, -1))

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """ids, labels [B, S] -> loss."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).view(-1, VOCAB), labels.view(-1))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions in the half-split layout."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def torch_runner(ids: np.ndarray) -> tuple[object, int]:
    """A function that does one update, and the number of parameters."""
    torch.manual_seed(0)
    model = TorchDecoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    inputs, labels = torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(ids[:, 1:].copy())

    def step() -> float:
        loss = model(inputs, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, sum(p.numel() for p in model.parameters())


def jax_runner(ids: np.ndarray, unroll: int) -> tuple[object, int]:
    """The same for jaxpt."""
    cfg = decoder.Config(width=WIDTH, heads=HEADS, ffn=FFN, layers=LAYERS, vocab_size=VOCAB, unroll=unroll)
    optimizer = optim.adam(1e-3)
    state = states.create(decoder.init(jax.random.key(0), cfg), optimizer)
    step = make_step(lambda p, b, k: causal_lm.loss(p, b, k, cfg), optimizer)
    inputs, labels = jnp.asarray(ids[:, :-1]), jnp.asarray(ids[:, 1:])
    batch = {"inputs": inputs, "labels": labels, "loss_weight": jnp.ones(inputs.shape)}
    holder = [state]

    def run() -> float:
        holder[0], metrics = step.run(holder[0], batch)
        return float(metrics["loss"])

    return run, spec.count(decoder.spec(cfg))


def main() -> None:
    """Runs both in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--unroll", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    ids = np.random.default_rng(0).integers(0, VOCAB, (BATCH, SEQUENCE + 1))
    runners = {"jaxpt": jax_runner(ids, args.unroll), "pytorch": torch_runner(ids)}
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for run, _ in runners.values():
        run(), run()  # compile, warm up
    for _ in range(args.rounds):
        for name, (run, _) in runners.items():
            start = time.perf_counter()
            losses = [run() for _ in range(args.steps)]
            rates[name].append(args.steps * BATCH * SEQUENCE / (time.perf_counter() - start))
            print(f"{name:8s} {rates[name][-1]:9.0f} tokens/s   loss {losses[-1]:.4f}", flush=True)
    ratios = [a / b for a, b in zip(rates["jaxpt"], rates["pytorch"], strict=True)]
    report = {
        "tokens_per_second": {name: statistics.median(r) for name, r in rates.items()},
        "ratio_median": statistics.median(ratios),
        "ratio_min_max": [min(ratios), max(ratios)],
        "parameters": {name: n for name, (_, n) in runners.items()},
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
