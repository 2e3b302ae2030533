"""Reads a compiled program's text: its computations, their instructions, and how often each of them runs.

XLA's own `cost_analysis` counts the body of a loop once, so a stack of layers under `lax.scan` costs as much as one
layer, and it knows nothing of kernels. Here each computation has the number of times it runs (a loop's trip count is read
from its condition), and operations, bytes and collectives are summed with that number.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "s4": 4, "u4": 4}  # others end with their number of bits
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program: element type, dimensions, and whether it is in the device's main memory."""

    dtype: str
    dims: tuple[int, ...]
    main: bool

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes without padding."""
        bits = BITS.get(self.dtype)
        if bits is None:
            found = re.match(r"[a-z]+(\d+)", self.dtype)
            bits = int(found[1]) if found else 0
        return self.size * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program. `shapes` are its results: one, or a flattened tuple's."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """The name of the computation in `name=%computation`."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def nbytes(self) -> int:
        """Bytes of all results."""
        return sum(s.nbytes for s in self.shapes)


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a module by name, and its entry's name."""

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation runs in one call of the program, fusions and branches included."""
        counts: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
            counts[name] = counts.get(name, 0) + times
            for instruction in self.computations[name].values():
                for callee, factor in self._callees(name, instruction):
                    visit(callee, times * factor)

        visit(self.entry, 1)
        return counts

    @functools.cached_property
    def fused(self) -> frozenset[str]:
        """Computations that are the inside of one kernel: their intermediate values never reach memory."""
        direct = {
            callee
            for computation in self.computations.values()
            for i in computation.values()
            if i.opcode == "fusion" and (callee := i.attribute("calls")) in self.computations
        }
        inside = set(direct)
        for name in direct:
            inside |= self._below(name)
        return frozenset(inside)

    @functools.cached_property
    def uncounted_loops(self) -> tuple[str, ...]:
        """Loops whose trip count could not be read; their bodies are counted once."""
        return tuple(
            i.name
            for name in self.runs
            for i in self.computations[name].values()
            if i.opcode == "while" and self.trip_count(name, i) is None
        )

    def trip_count(self, where: str, loop: Instruction) -> int | None:
        """Iterations of a `while` that counts from a constant to a constant; None where it does not."""
        stated = re.search(r'known_trip_count[^\d]*"?n"?\W+(\d+)', loop.attributes)
        if stated:
            return int(stated[1])
        condition = self.computations.get(loop.attribute("condition") or "")
        body = self.computations.get(loop.attribute("body") or "")
        if condition is None or body is None:
            return None
        test = next((i for i in condition.values() if i.root), None)
        if test is None or test.opcode != "compare" or len(test.operands) != 2:
            return None
        counter, bound = (condition.get(x) for x in test.operands)
        limit = _constant(bound)
        if counter is None or counter.opcode != "get-tuple-element" or limit is None:
            return None
        index = int(re.search(r"index=(\d+)", counter.attributes)[1])  # type: ignore[index]
        start, step = self._start(where, loop, index), _step(body, index)
        direction = re.search(r"direction=(\w+)", test.attributes)
        if direction is None or direction[1] not in ("LT", "LE", "NE") or not step:
            return None
        return max(0, math.ceil((limit + (direction[1] == "LE") - start) / step))

    def _start(self, where: str, loop: Instruction, index: int) -> int:
        """The counter's first value: 0 unless the program says otherwise."""
        scope = self.computations[where]
        value: Instruction | None = scope.get(loop.operands[0])
        if value is not None and value.opcode == "tuple":
            value = scope.get(value.operands[index])
        while value is not None and value.opcode in ("copy", "bitcast") and value.operands:
            value = scope.get(value.operands[0])
        return _constant(value) or 0

    def _callees(self, where: str, i: Instruction) -> Iterator[tuple[str, int]]:
        if i.opcode == "while":
            times = self.trip_count(where, i)
            yield from ((c, 1 if times is None else times) for c in (i.attribute("body"),) if c in self.computations)
            return
        if i.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
            names = branches[1].split(",") if branches else [i.attribute("true_computation") or ""]
            yield from ((n.strip().lstrip("%"), 1) for n in names if n.strip().lstrip("%") in self.computations)
            return
        key = {"fusion": "calls", "call": "to_apply", "async-start": "calls"}.get(i.opcode)
        callee = i.attribute(key) if key else None
        if callee in self.computations:
            yield callee, 1

    def _below(self, name: str) -> set[str]:
        found: set[str] = set()
        for i in self.computations[name].values():
            for callee, _ in self._callees(name, i):
                found |= {callee} | self._below(callee)
        return found


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in text.splitlines():
        if line == "}":
            current = None
        elif current is None:
            header = _HEADER.match(line)
            if header:
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
        else:  # a kernel's configuration may go on over lines that are no instructions
            found = _INSTRUCTION.match(line)
            if found:
                instruction = _instruction(bool(found[1]), found[2], found[3])
                if instruction is not None:
                    current[instruction.name] = instruction
    if entry is None:
        raise ValueError(f"no entry computation in this compiled program of {len(text)} characters")
    return Program(computations, entry)


def _instruction(root: bool, name: str, rest: str) -> Instruction | None:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    opcode = _OPCODE.match(rest, end)
    if opcode is None:
        return None
    close = _closing(rest, opcode.end() - 1)
    inside = rest[opcode.end() : close]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    attributes = inside + rest[close + 1 :] if opcode[1] in ("constant", "parameter") else rest[close + 1 :]
    return Instruction(name, opcode[1], _shapes(rest[:end]), operands, attributes, root)


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(m[1], tuple(int(n) for n in m[2].split(",") if n), not re.search(r"S\([1-9]\d*\)", m[0]))
        for m in _ARRAY.finditer(re.sub(r"/\*.*?\*/", "", text))
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return len(text)


def _constant(i: Instruction | None) -> int | None:
    if i is None or i.opcode != "constant":
        return None
    found = re.match(r"-?\d+(?![\d.])", i.attributes)
    return int(found[0]) if found else None


def _step(body: Computation, index: int) -> int | None:
    """What one iteration adds to the counter."""
    root = next((i for i in body.values() if i.root), None)
    if root is None or root.opcode != "tuple":
        return None
    value = body.get(root.operands[index])
    while value is not None and value.opcode in ("copy", "bitcast"):
        value = body.get(value.operands[0])
    if value is None or value.opcode != "add":
        return 1 if value is not None and value.opcode == "fusion" else None
    return next((c for x in value.operands if (c := _constant(body.get(x))) is not None), None)
