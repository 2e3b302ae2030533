"""Operations and bytes of a compiled program: every instruction times the number of times it runs.

Operations are those of matrix products and convolutions (2 a multiply-add, the padding that a convolution skips left
out), and of attention kernels, whose inside the compiler does not show. Element-wise work is left out: on matrix units it
is not what the peak is about. Bytes are what crosses between a device and its main memory.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter

from jaxpt.sharding.hlo import Computation, Instruction, Program, Shape

# Matrix products of [S, T, K] a head that each kernel of JAX's splash attention does.
SPLASH_PRODUCTS = {"splash_mqa_fwd": 2, "splash_mha_fwd": 2, "splash_mqa_dq": 3, "splash_mqa_dkv": 4}
SPLASH_PRODUCTS |= {"splash_mha_dq": 3, "splash_mha_dkv": 4}
SPLASH_BLOCK = 128

# Instructions that move nothing by themselves.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while call conditional after-all iota partition-id replica-id "
    "opt-barrier async-done async-update all-gather-done all-reduce-done collective-permute-done copy-done send-done "
    "recv-done domain add-dependency".split()
)


def flops(program: Program) -> float:
    """Floating-point operations of one call on one device."""
    return float(
        sum(
            times * _instruction_flops(i, computation)
            for name, times in program.runs.items()
            for computation in (program.computations[name],)
            for i in computation.values()
        )
    )


def unknown_kernels(program: Program) -> dict[str, int]:
    """Hand-written kernels of which only the bytes are counted: name -> number of calls."""
    found: Counter[str] = Counter()
    for name, times in program.runs.items():
        for i in program.computations[name].values():
            if 'custom_call_target="tpu_custom_call"' in i.attributes and not _splash(i):
                found[i.name] += times
    return dict(found)


def bytes_accessed(program: Program) -> float:
    """Bytes read from and written to main memory by one call on one device."""
    return float(
        sum(
            times * _instruction_bytes(i, program.computations[name], program)
            for name, times in program.runs.items()
            if name not in program.fused
            for i in program.computations[name].values()
        )
    )


def _instruction_flops(i: Instruction, scope: Computation) -> int:
    if i.opcode == "convolution":
        return _convolution(i, scope)
    if i.opcode == "dot":
        left = scope[i.operands[0]].shapes[0]
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
        dims = [int(n) for n in contracted[1].split(",") if n] if contracted else []
        return 2 * i.shapes[0].size * math.prod(left.dims[d] for d in dims)
    if i.opcode == "custom-call":
        return _splash(i, scope)
    return 0


def _splash(i: Instruction, scope: Computation | None = None) -> int:
    """Operations of a splash attention kernel, the blocks that causal order hides left out; 1 where only asked if it is."""
    products = next((n for name, n in SPLASH_PRODUCTS.items() if i.name.startswith(name)), 0)
    if not products or scope is None:
        return products
    operands = [s for x in i.operands if x in scope for s in scope[x].shapes if s.dtype in ("bf16", "f16", "f32")]
    q = max(operands, key=lambda s: len(s.dims), default=Shape("f32", (0,), True))
    *lead, length, width = q.dims
    blocks = max(1, length // SPLASH_BLOCK)
    return 2 * products * math.prod(lead) * length * length * width * (blocks + 1) // (2 * blocks)


def _convolution(i: Instruction, scope: Computation) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    if labels is None:
        return 0
    left, right = (scope[x].shapes[0].dims for x in i.operands[:2])
    out = i.shapes[0].dims
    spatial = sorted(c for c in labels[1] if c.isdigit())  # the window lists them by number
    window = _window(i.attributes, len(spatial))
    positions = 1
    for at, c in enumerate(spatial):
        n_in, n_kernel, n_out = (
            dims[text.index(c)] for dims, text in ((left, labels[1]), (right, labels[2]), (out, labels[3]))
        )
        positions *= _valid(n_in, n_kernel, n_out, *window[at])
    groups = re.search(r"batch_group_count=(\d+)", i.attributes)
    batch, features = out[labels[3].index("b")], out[labels[3].index("f")]
    return 2 * positions * batch * features * right[labels[2].index("i")] // (int(groups[1]) if groups else 1)


def _window(attributes: str, spatial: int) -> list[tuple[int, int, int, int]]:
    """(stride, low padding, input dilation, window dilation) of every spatial dimension."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(f.split("=") for f in found[1].split()) if found else {}

    def values(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * spatial

    pads = [int(p.split("_")[0]) for p in values("pad", "0_0")]
    rest = [[int(v) for v in values(n, "1")] for n in ("stride", "lhs_dilate", "rhs_dilate")]
    return [(rest[0][d], pads[d], rest[1][d], rest[2][d]) for d in range(spatial)]


@functools.cache
def _valid(n_in: int, n_kernel: int, n_out: int, stride: int, low: int, dilate: int, window_dilate: int) -> int:
    """Pairs of output and kernel positions that meet an input element, not padding or a dilation's hole."""
    last = (n_in - 1) * dilate
    count = 0
    for kernel in range(n_kernel):
        offset = kernel * window_dilate - low
        if dilate == 1:  # a range of outputs
            first = max(0, math.ceil(-offset / stride))
            count += max(0, min(n_out - 1, (last - offset) // stride) - first + 1)
        else:
            at = range(offset, offset + n_out * stride, stride)
            count += sum(0 <= x <= last and x % dilate == 0 for x in at)
    return count


def _instruction_bytes(i: Instruction, scope: Computation, program: Program) -> int:
    if i.opcode in FREE or 'custom_call_target="AllocateBuffer"' in i.attributes:
        return 0
    if i.opcode.endswith("-start") and i.opcode != "async-start":
        operands = [scope[x] for x in i.operands if x in scope]
        moved = sum(s.nbytes for o in operands for s in o.shapes if s.main)  # read here
        landed = i.shapes[0] if i.opcode == "copy-start" and i.shapes else None
        return moved + (landed.nbytes if landed is not None and landed.main else 0)
    if i.opcode == "fusion":
        callee = program.computations.get(i.attribute("calls") or "")
        if callee is not None:
            return _fusion_bytes(i, callee)
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return _main(i) * 2
    if i.opcode in ("dynamic-update-slice", "scatter"):
        update = scope.get(i.operands[1 if i.opcode == "dynamic-update-slice" else -1])
        return 2 * (update.nbytes if update is not None else _main(i))
    return _main(i) + sum(_main(scope[x]) for x in i.operands if x in scope)


def _main(i: Instruction) -> int:
    return sum(s.nbytes for s in i.shapes if s.main)


def _fusion_bytes(i: Instruction, inside: Computation) -> int:
    """What a fusion reads of its operands (of those it slices, the slices) and what of its results it writes."""
    used: dict[str, list[Instruction]] = {}
    for x in inside.values():
        for operand in x.operands:
            used.setdefault(operand, []).append(x)
    total = 0
    for p in inside.values():
        if p.opcode != "parameter" or not any(s.main for s in p.shapes):
            continue
        users = used.get(p.name, [])
        if users and all(u.opcode in ("dynamic-slice", "slice", "gather") and u.operands[0] == p.name for u in users):
            total += min(p.nbytes, sum(u.nbytes for u in users))
        elif users and all(_updates(u, p) for u in users):
            continue  # written in place: only the update moves, counted with the result
        elif users:
            total += _main(p)
    root = next((x for x in inside.values() if x.root), None)
    results = [inside.get(x) for x in root.operands] if root is not None and root.opcode == "tuple" else [root]
    shapes = iter(i.shapes)
    for result in results:
        if result is None:
            continue
        mine = [next(shapes, None) for _ in result.shapes]
        if result.opcode == "parameter" or not any(s is not None and s.main for s in mine):
            continue
        if result.opcode == "dynamic-update-slice" and result.operands[1] in inside:
            total += inside[result.operands[1]].nbytes
        else:
            total += sum(s.nbytes for s in mine if s is not None and s.main)
    return total


def _updates(u: Instruction, p: Instruction) -> bool:
    return u.opcode == "dynamic-update-slice" and u.operands[0] == p.name
