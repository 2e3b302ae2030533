"""What a family is, and what the families share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Set
from typing import Any

from jaxpt.interop.names import Piece
from jaxpt.interop.settings import Settings
from jaxpt.layers.block import BlockConfig
from jaxpt.models import decoder, encoder, encoder_decoder

MODELS: tuple[Any, ...] = (decoder, encoder, encoder_decoder)
Config = decoder.Config | encoder.Config | encoder_decoder.Config


@dataclasses.dataclass(frozen=True)
class Family:
    """Attributes:
    model_type: the name in config.json.
    config: the class of our configuration.
    read: (config.json, names of the tensors) -> our configuration; a DataError where we have no such architecture.
    write: our configuration -> config.json, without number formats; a ValueError where the family cannot express it.
    pieces: our configuration -> the table of names.
    prefix: what the names lack where a model was saved without its head.
    headless: whether a configuration is such a model.
    ignored: endings of tensors that say nothing.
    aliases: other beginnings of names, and what they are in the table.
    defaults: keys of a written config.json that no configuration of ours has, and the settings given may replace.
    """

    model_type: str
    config: type
    read: Callable[[Settings, Set[str]], Config]
    write: Callable[[Any], dict[str, Any]]
    pieces: Callable[[Any], list[Piece]]
    prefix: str = ""
    headless: Callable[[Any], bool] = lambda cfg: False
    ignored: tuple[str, ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def spec(self, cfg: Config) -> Any:
        """The spec tree of a configuration."""
        return next(model.spec(cfg) for model in MODELS if isinstance(cfg, model.Config))


def linear(theirs: str, ours: str, *, bias: bool) -> list[Piece]:
    """A matrix [out, in] and its bias."""
    kernel = Piece(f"{theirs}.weight", (f"{ours}/kernel",))
    return [kernel, Piece(f"{theirs}.bias", (f"{ours}/bias",))] if bias else [kernel]


def layer_norm(theirs: str, ours: str) -> list[Piece]:
    """Scale and bias."""
    return [Piece(f"{theirs}.weight", (f"{ours}/scale",)), Piece(f"{theirs}.bias", (f"{ours}/bias",))]


def require(cfg: BlockConfig, family: str, **expected: Any) -> None:
    """Raises a ValueError unless the fields of a configuration have these values: the family has no other."""
    wrong = [f"{k}={getattr(cfg, k)!r} (has {v!r})" for k, v in expected.items() if getattr(cfg, k) != v]
    if wrong:
        raise ValueError(f"{family} cannot express {', '.join(wrong)}")


def require_plain_heads(cfg: BlockConfig, family: str) -> None:
    """Raises a ValueError for grouped heads or heads that do not share the width evenly."""
    if cfg.groups != cfg.heads or cfg.per_head * cfg.heads != cfg.width:
        raise ValueError(
            f"{family} cannot express {cfg.groups} key/value heads for {cfg.heads} heads of {cfg.per_head} dimensions "
            f"in a width of {cfg.width}: it has as many of both, and heads * head_dim = width"
        )
