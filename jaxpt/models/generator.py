"""A discriminator and the smaller generator that it is trained with, and what the two share.

    small = Generator(width=0.25, sharing="embeddings")         # ELECTRA (arXiv 2003.10555, section 3.2)
    half = Generator(depth=0.5, sharing="gradient_disentangled")          # DeBERTaV3 (arXiv 2111.09543, section 3.3)
    params = specs.init(key, spec(small, cfg))                  # {"generator": ..., "discriminator": ...}
    of_generator, of_discriminator = parts(params, small, cfg)  # two whole encoders

sharing    "none"                    each has its own arrays
           "embeddings"              one set of token, position and type tables, and one norm of their sum
           "gradient_disentangled"   E_D = stop_gradient(E_G) + E_delta for each of the tables; E_delta starts at 0
           "all"                     everything but the heads; the two must be of one size

The generator is always whole in its tree; the discriminator's lacks what it takes from there. E_delta is the tree "delta".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxpt.core import spec as specs
from jaxpt.core.names import nearest_error
from jaxpt.core.types import Params
from jaxpt.models import encoder

SHARING = ("none", "embeddings", "gradient_disentangled", "all")
TABLES = ("embedding", "positions", "token_types")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """Attributes:
    width, depth: shares of the discriminator's width (and feed-forward width) and layers. Heads keep their size.
    sharing: see the module.
    """

    width: float = 1.0
    depth: float = 1.0
    sharing: str = "embeddings"

    def __post_init__(self) -> None:
        if self.sharing not in SHARING:
            raise nearest_error("sharing", self.sharing, SHARING)
        if not (0 < self.width <= 1 and 0 < self.depth <= 1):
            raise ValueError(f"a generator's width and depth are shares in (0, 1], got {self.width} and {self.depth}")
        if self.sharing == "all" and (self.width, self.depth) != (1.0, 1.0):
            raise ValueError(f'sharing="all" needs models of one size, got width={self.width}, depth={self.depth}')


def generator_config(g: Generator, cfg: encoder.Config) -> encoder.Config:
    """The generator's model. A narrower one that shares tables has a projection from their width to its own.

    Raises:
      ValueError: its width is no multiple of its heads.
    """
    width, layers = max(1, round(cfg.width * g.width)), max(1, round(cfg.layers * g.depth))
    size = cfg.embedding_size
    if width != cfg.width:
        size = None if g.sharing == "none" else cfg.table_width
    heads = max(1, width // cfg.per_head)
    found = dataclasses.replace(
        cfg,
        width=width,
        layers=layers,
        unroll=min(cfg.unroll, layers),
        heads=heads,
        kv_heads=None if cfg.kv_heads is None else max(1, heads * cfg.groups // cfg.heads),
        ffn=max(1, round(cfg.ffn * g.width)),
        embedding_size=size,
        mlm_head=True,
        rtd_head="none",
        pooler=False,
    )
    if found.head_dim is None and width % heads:
        raise ValueError(f"a generator of width {width} cannot have {heads} heads; choose another share of {cfg.width}")
    return found


def discriminator_config(cfg: encoder.Config) -> encoder.Config:
    """The model that is kept: without what only the generator's read-out needs."""
    return dataclasses.replace(cfg, mlm_head=False, decoder_positions=0)


def shared(g: Generator, cfg: encoder.Config) -> tuple[str, ...]:
    """Names of what the discriminator takes from the generator as it is.

    The norm after the tables is among them where both have it at one width.
    """
    if g.sharing == "embeddings":
        both = (encoder.spec(generator_config(g, cfg)), encoder.spec(discriminator_config(cfg)))
        of, to = (tree["embedding_norm"]["scale"].shape for tree in both)
        return (*(name for name in TABLES if name in both[1]), *(("embedding_norm",) if of == to else ()))
    if g.sharing == "all":
        return tuple(name for name in encoder.spec(discriminator_config(cfg)) if name not in ("rtd", "pooler"))
    return ()


def spec(g: Generator, cfg: encoder.Config) -> Params:
    """Every array of both, each once."""
    own, taken = encoder.spec(discriminator_config(cfg)), shared(g, cfg)
    tree = {name: x for name, x in own.items() if name not in taken}
    if g.sharing == "gradient_disentangled":
        tables = {name: tree.pop(name) for name in TABLES if name in tree}
        tree["delta"] = {name: dataclasses.replace(table, init=specs.zeros) for name, table in tables.items()}
    return {"generator": encoder.spec(generator_config(g, cfg)), "discriminator": tree}


def parts(params: Params, g: Generator, cfg: encoder.Config) -> tuple[Params, Params]:
    """(generator, discriminator) as whole encoders, of `generator_config` and `discriminator_config`."""
    of_generator = params["generator"]
    own: dict[str, Any] = dict(params["discriminator"])
    own |= {name: of_generator[name] for name in shared(g, cfg)}
    for name, delta in own.pop("delta", {}).items():
        own[name] = jax.lax.stop_gradient(of_generator[name]) + delta
    return of_generator, own
