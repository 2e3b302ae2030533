"""TPU kernels in tile-COO: W is built a panel at a time in VMEM and never exists in main memory, nor does its gradient.

`panel`, for y and for dX: the grid is (panels, phases + T tiles). In each of the first `phases` steps of a panel a chunk of
W is built in a VMEM scratch: the low-rank part on the MXU, and every tile of S as (v * onehot(rows)) onehot(columns)^T,
since a TPU core has no scatter; the steps after that multiply one tile of tokens each by the whole panel. What a panel costs
to build is thus paid once for all tokens.

`gradients`, for dV, dB and dA: G^T = X^T dY is summed over the tokens one tile at a time in VMEM; at the last tokens its
entries on the support are read out by one-hot products, and the tile is multiplied by A and B. The gradient of the factor
on the shorter side of W stays in VMEM for the whole kernel, that of the other for one row of tiles.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.common.call import LANES, inside, like, pad_to, precision, round_up, tpu_call
from pallas_kernels.sparse_low_rank.layout import EMPTY, TILE

SUBTILES = ((0,), (0,))  # contract the first axis of both


class Sizes(NamedTuple):
    """Tile sizes: tokens per step, rows or columns of a panel, of a chunk of it; the tile of G and its tokens."""

    tokens: int
    panel: int
    chunk: int
    g_tile: int
    g_tokens: int


class Padded(NamedTuple):
    """Operands with out and in rounded up to whole panels, the rank and the slots to whole lanes."""

    b: Float[Array, "O R"]
    a: Float[Array, "R I"]
    v: Float[Array, "M N 1 K"]
    p: Int[Array, "M N 1 K"]


def pad(
    b: Float[Array, "O R"], a: Float[Array, "R I"], v: Float[Array, "M N K"], p: Int[Array, "M N K"], sizes: Sizes
) -> Padded:
    """Zeros around the factors, empty slots around the support."""
    largest = max(sizes.panel, sizes.chunk, sizes.g_tile)
    m, n = padded_length(b.shape[0], largest), padded_length(a.shape[1], largest)
    r, k = max(round_up(b.shape[1], LANES), LANES), max(round_up(v.shape[2], LANES), LANES)
    tiles = (m // TILE, n // TILE, k)
    v4, p4 = pad_to(v, tiles)[:, :, None], pad_to(p, tiles, EMPTY)[:, :, None]
    return Padded(pad_to(b, (m, r)), pad_to(a, (r, n)), v4, p4)


def padded_length(n: int, size: int) -> int:
    """n rounded up to a multiple of `size`, or of its half, quarter, ... where that would add more than an eighth."""
    while size > TILE and round_up(n, size) > 1.125 * round_up(n, TILE):
        size //= 2
    return round_up(n, size)


def part(n: int, size: int) -> int:
    """The largest of size, size / 2, ... that divides n."""
    while n % size:
        size //= 2
    return size


def one_hot(p: Int[Array, "1 K"]) -> tuple[Any, Any]:
    """Masks [TILE, K]: whether slot k lies in row i, and whether in column j. An empty slot lies in no row."""
    line = jax.lax.broadcasted_iota(jnp.int32, (TILE, p.shape[1]), 0)
    p = p.astype(jnp.int32)
    return line == p // TILE, line == p % TILE


def _panel_kernel(x, b, a, v, p, y, panel, chunk, *, phases, transposed):  # noqa: ANN001, ANN202
    step = pl.program_id(1)
    exact = precision(x.dtype)

    @pl.when(step < phases)
    def _() -> None:
        chunk[...] = jnp.dot(b[...], a[...], preferred_element_type=jnp.float32, precision=exact)
        across = v.shape[1]

        def add_tile(s: Any, _: None) -> None:
            i, j = s // across, s % across
            rows, columns = one_hot(p[i, j])
            weighted = jnp.where(rows, v[i, j].astype(jnp.float32), 0.0).astype(v.dtype)
            tile = jax.lax.dot_general(
                weighted,
                columns.astype(v.dtype),
                (((1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
                precision=exact,
            )
            at = (pl.ds(pl.multiple_of(i * TILE, TILE), TILE), pl.ds(pl.multiple_of(j * TILE, TILE), TILE))
            chunk[at] += tile

        jax.lax.fori_loop(0, v.shape[0] * across, add_tile, None)
        length = chunk.shape[0 if transposed else 1]
        place = pl.ds(pl.multiple_of(step * length, length), length)
        panel[(place, slice(None)) if transposed else (slice(None), place)] = chunk[...].astype(panel.dtype)

    @pl.when(step >= phases)
    def _() -> None:
        contract = (((1,), (0 if transposed else 1,)), ((), ()))
        own = pl.ds(0, x.shape[1])  # the panel is padded, x is not
        w = panel[own, :] if transposed else panel[:, own]
        product = jax.lax.dot_general(x[...], w, contract, preferred_element_type=jnp.float32, precision=exact)
        y[...] = product.astype(y.dtype)


def panel(
    x: Float[Array, "T I"], w: Padded, width: int, sizes: Sizes, scratch: int, transposed: bool
) -> Float[Array, "T O"]:
    """x W^T, or x W where `transposed`; the first `width` columns of it."""
    (m, r), n, k = w.b.shape, w.a.shape[1], w.v.shape[3]
    tokens = min(sizes.tokens, round_up(x.shape[0], 16))
    across, along = (n, m) if transposed else (m, n)  # a panel is [across / panels] wide, and `along` long
    wide, long = part(across, sizes.panel), part(along, sizes.chunk)
    phases, steps = along // long, pl.cdiv(x.shape[0], tokens)
    out_rows, in_columns = (long, wide) if transposed else (wide, long)

    def tile(i: Any, s: Any) -> tuple[Any, Any]:
        """(row, column) of the chunk of W in which step s of panel i is."""
        phase = jnp.minimum(s, phases - 1)
        return (phase, i) if transposed else (i, phase)

    def token(s: Any) -> Any:
        return jnp.maximum(s - phases, 0)

    support = pl.BlockSpec((out_rows // TILE, in_columns // TILE, 1, k), lambda i, s: (*tile(i, s), 0, 0))
    grid = (across // wide, phases + steps)
    item = x.dtype.itemsize
    return tpu_call(
        functools.partial(_panel_kernel, phases=phases, transposed=transposed),
        like((x.shape[0], width), x.dtype, x, *w),
        x,
        *w,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            grid=grid,
            in_specs=[
                pl.BlockSpec((tokens, x.shape[1]), lambda i, s: (token(s), 0)),
                pl.BlockSpec((out_rows, r), lambda i, s: (tile(i, s)[0], 0)),
                pl.BlockSpec((r, in_columns), lambda i, s: (0, tile(i, s)[1])),
                support,
                support,
            ],
            out_specs=pl.BlockSpec((tokens, wide), lambda i, s: (token(s), i)),
            scratch_shapes=[
                pltpu.VMEM((along, wide) if transposed else (wide, along), x.dtype),
                pltpu.VMEM((out_rows, in_columns), jnp.float32),
            ],
        ),
        semantics=("parallel", "arbitrary"),
        scratch=scratch,
        flops=2 * x.shape[0] * m * n + 2 * m * n * r + 2 * m * n * k,
        nbytes=item * (x.shape[0] * (grid[0] * along + across) + r * (m + n) * (m // out_rows + n // in_columns) // 2)
        + w.v.nbytes
        + w.p.nbytes,
        name="sparse_low_rank_" + ("dx" if transposed else "forward"),
    )


def _gradient_kernel(*refs, shapes, rows_first, pieces):  # noqa: ANN001, ANN002, ANN202
    x, dy, b, a, p, dv, d_outer, d_resident, gt = refs
    outer, inner, t = pl.program_id(1), pl.program_id(2), pl.program_id(3)
    outer_index = pl.program_id(0) * pl.num_programs(1) + outer
    high = jax.lax.Precision.HIGHEST

    @pl.when(t == 0)
    def _() -> None:
        gt[...] = jnp.zeros_like(gt)

    @pl.when((t == 0) & (inner == 0))
    def _() -> None:
        d_outer[...] = jnp.zeros_like(d_outer)

    @pl.when((t == 0) & (inner == 0) & (outer == 0))
    def _() -> None:
        d_resident[...] = jnp.zeros_like(d_resident)

    row, column = (outer_index, inner) if rows_first else (inner, outer_index)
    starts = (t * x.shape[0], column * x.shape[1]), (t * x.shape[0], row * dy.shape[1])
    x_tile, dy_tile = (inside(ref[...], at, end) for ref, at, end in zip((x, dy), starts, shapes, strict=True))
    contract = (SUBTILES, ((), ()))
    gt[...] += jax.lax.dot_general(
        x_tile, dy_tile, contract, preferred_element_type=jnp.float32, precision=precision(x.dtype)
    )

    @pl.when(t == pl.num_programs(3) - 1)
    def _() -> None:
        across = p.shape[1]

        def extract(s: Any, _: None) -> None:
            i, j = s // across, s % across
            rows, columns = one_hot(p[i, j])
            tile = gt[pl.ds(pl.multiple_of(j * TILE, TILE), TILE), pl.ds(pl.multiple_of(i * TILE, TILE), TILE)]
            picked = exact_product(tile, rows.astype(jnp.bfloat16), pieces)  # [column, slot]: G of the slot's row
            taken = columns & (p[i, j].astype(jnp.int32) != EMPTY)
            dv[i, j] = jnp.sum(jnp.where(taken, picked, 0.0), axis=0, keepdims=True).astype(dv.dtype)

        jax.lax.fori_loop(0, p.shape[0] * across, extract, None)
        factor = b.dtype if b.dtype == jnp.float32 else jnp.bfloat16
        g = gt[...].astype(factor)
        dot = functools.partial(
            jax.lax.dot_general,
            preferred_element_type=jnp.float32,
            precision=high if factor == jnp.float32 else jax.lax.Precision.DEFAULT,
        )
        da = dot(g, b[...], (((1,), (0,)), ((), ())))  # [in, rank], the transpose of dA
        db = dot(g, a[...], (((0,), (1,)), ((), ())))  # [out, rank]
        d_outer[...] += db if rows_first else da
        length = db.shape[0] if not rows_first else da.shape[0]
        place = pl.ds(pl.multiple_of(inner * length, length), length)
        d_resident[0, place, :] += da if rows_first else db


def exact_product(x: Float[Array, "M N"], one_hot: Float[Array, "N K"], pieces: int) -> Float[Array, "M K"]:
    """x @ one_hot with x cut into `pieces` bfloat16 numbers that add up to it: 8 bits of mantissa each."""
    total = jnp.zeros((x.shape[0], one_hot.shape[1]), jnp.float32)
    for _ in range(pieces):
        piece = x.astype(jnp.bfloat16)
        total += jnp.dot(piece, one_hot, preferred_element_type=jnp.float32)
        x = x - piece.astype(jnp.float32)
    return total


def gradients(
    x: Float[Array, "T I"], dy: Float[Array, "T O"], w: Padded, sizes: Sizes, scratch: int, cores: int
) -> tuple[Float[Array, "O R"], Float[Array, "R I"], Float[Array, "M N 1 K"]]:
    """(dB, dA, dV), as wide as the padded W. `cores` share the tiles and sum up afterwards."""
    (m, r), n, k = w.b.shape, w.a.shape[1], w.v.shape[3]
    rows_first = n <= m  # outer loop over the longer side, so that the shorter side's factor gradient is resident
    tokens = min(sizes.g_tokens, round_up(x.shape[0], 16))
    tall, wide = part(m, sizes.g_tile), part(n, sizes.g_tile)
    outer, inner = (m // tall, n // wide) if rows_first else (n // wide, m // tall)
    cores = cores if outer % cores == 0 else 1
    grid = (cores, outer // cores, inner, pl.cdiv(x.shape[0], tokens))

    def row(c: Any, o: Any, i: Any) -> Any:
        return c * grid[1] + o if rows_first else i

    def column(c: Any, o: Any, i: Any) -> Any:
        return i if rows_first else c * grid[1] + o

    support = pl.BlockSpec((tall // TILE, wide // TILE, 1, k), lambda c, o, i, t: (row(c, o, i), column(c, o, i), 0, 0))
    outer_block, resident = (tall, n) if rows_first else (wide, m)
    steps, item = grid[3], x.dtype.itemsize
    dv, d_outer, d_resident = tpu_call(
        functools.partial(
            _gradient_kernel,
            shapes=(x.shape, dy.shape),
            rows_first=rows_first,
            pieces=3 if x.dtype == jnp.float32 else 2,
        ),
        [
            like(w.v.shape, w.v.dtype, x, dy, *w),
            like((m if rows_first else n, r), jnp.float32, x, dy, *w),
            like((cores, resident, r), jnp.float32, x, dy, *w),
        ],
        x,
        dy,
        w.b,
        w.a,
        w.p,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            grid=grid,
            in_specs=[
                pl.BlockSpec((tokens, wide), lambda c, o, i, t: (t, column(c, o, i))),
                pl.BlockSpec((tokens, tall), lambda c, o, i, t: (t, row(c, o, i))),
                pl.BlockSpec((tall, r), lambda c, o, i, t: (row(c, o, i), 0)),
                pl.BlockSpec((r, wide), lambda c, o, i, t: (0, column(c, o, i))),
                support,
            ],
            out_specs=[
                support,
                pl.BlockSpec((outer_block, r), lambda c, o, i, t: (c * grid[1] + o, 0)),
                pl.BlockSpec((1, resident, r), lambda c, o, i, t: (c, 0, 0), pipeline_mode=pl.Buffered(1)),
            ],
            scratch_shapes=[pltpu.VMEM((wide, tall), jnp.float32)],
        ),
        semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
        scratch=scratch,
        flops=2 * x.shape[0] * m * n + 4 * m * n * r + 4 * m * n * k,
        nbytes=item * steps * tokens * m * n * (1 / tall + 1 / wide)
        + item * r * (m + n) * max(outer, inner)
        + w.v.nbytes
        + w.p.nbytes
        + 4 * r * (m + n),
        name="sparse_low_rank_gradients",
    )
    d_resident = d_resident.sum(0)
    db, da = (d_outer, d_resident) if rows_first else (d_resident, d_outer)
    return db.astype(w.b.dtype), da.T.astype(w.a.dtype), dv


def scratch_needed(x: Any, b: Any, a: Any, v: Any, sizes: Sizes) -> int:
    """Bytes of VMEM of the larger kernel: double-buffered blocks and scratch."""
    largest, item = max(sizes.panel, sizes.chunk, sizes.g_tile), x.dtype.itemsize
    m, n = padded_length(b.shape[0], largest), padded_length(a.shape[1], largest)
    r, k = max(round_up(b.shape[1], LANES), LANES), max(round_up(v.shape[2], LANES), LANES)

    def panel_bytes(across: int, along: int) -> int:
        wide, long = part(across, sizes.panel), part(along, sizes.chunk)
        streamed = sizes.tokens * (along + wide) + r * (wide + long)
        support = wide * long // TILE**2 * k * 8 * 8  # [1, K] takes eight sublanes of 32 bits
        return 2 * item * streamed + 2 * support + wide * along * item + 4 * wide * long

    tall, wide = part(m, sizes.g_tile), part(n, sizes.g_tile)
    streamed = 2 * item * (sizes.g_tokens * (tall + wide) + r * (tall + wide))
    sums = 4 * r * (min(m, n) + 2 * (tall if n <= m else wide)) + 3 * 4 * tall * wide
    gradient = streamed + sums + tall * wide // TILE**2 * k * 8 * 8 * 2
    return max(panel_bytes(m, n), panel_bytes(n, m), gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def sparse_low_rank_tpu(
    x: Float[Array, "*B I"],
    b: Float[Array, "O R"],
    a: Float[Array, "R I"],
    v: Float[Array, "M N K"],
    support: Int[Array, "M N K"],
    sizes: Sizes,
    scratch: int,
    cores: int,
) -> Float[Array, "*B O"]:
    """y = x (B A + S)^T with v and support in tile-COO. `scratch` bytes of VMEM, `cores` per device."""
    w = pad(b, a, v, support, sizes)
    y = panel(x.reshape(-1, x.shape[-1]), w, b.shape[0], sizes, scratch, transposed=False)
    return y.reshape(*x.shape[:-1], b.shape[0])


def _forward(x, b, a, v, support, sizes, scratch, cores):  # noqa: ANN001, ANN202
    return sparse_low_rank_tpu(x, b, a, v, support, sizes, scratch, cores), (x, b, a, v, support)


def _backward(sizes, scratch, cores, saved, dy):  # noqa: ANN001, ANN202
    x, b, a, v, support = saved
    w = pad(b, a, v, support, sizes)
    x2, dy2 = (t.reshape(-1, t.shape[-1]) for t in (x, dy))
    dx = panel(dy2, w, x.shape[-1], sizes, scratch, transposed=True)
    db, da, dv = gradients(x2, dy2, w, sizes, scratch, cores)
    dv = dv[: v.shape[0], : v.shape[1], 0, : v.shape[2]]
    return dx.reshape(x.shape), db[: b.shape[0], : b.shape[1]], da[: a.shape[0], : a.shape[1]], dv, None


sparse_low_rank_tpu.defvjp(_forward, _backward)
