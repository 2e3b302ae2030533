"""Next-token prediction on a decoder with experts, which must be kept in use:

    loss + balance * (mean over layers and sequences of `moe.balance`) + z_loss * (the same of `moe.z_loss`)

    Pretrain(model=decoder.Config(experts=Experts(count=8, per_token=2)), objective=RoutedLM())

A sequence counts by its tokens, so that sums and weights stay exact under microbatches. Held-out text is scored without.
Weights: 0.01 and 0.001 (Switch, arXiv 2101.03961; ST-MoE, arXiv 2202.08906).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxpt.core.types import Params, PRNGKeyArray
from jaxpt.layers import moe
from jaxpt.models import decoder
from jaxpt.objectives import causal_lm
from jaxpt.objectives.base import Losses
from jaxpt.objectives.causal_lm import CausalLM


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutedLM(CausalLM):
    """Attributes:
    balance, z_loss: weights of the auxiliary losses.
    """

    balance: float = 0.01
    z_loss: float = 0.001

    def check(self) -> None:
        if self.model.experts is None:
            raise ValueError("a routed language model needs a model with experts=Experts(...), this one has none")

    def scored(self) -> CausalLM:
        return CausalLM(model=self.model)

    def loss(self, params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray | None) -> Losses:
        return loss(params, batch, key, self)


def loss(params: Params, batch: dict[str, jax.Array], key: PRNGKeyArray | None, cfg: RoutedLM) -> Losses:
    """Losses of a batch of packed or plain sequences, as `causal_lm.loss`. Metrics are the accuracy and both
    auxiliary losses."""
    segments, positions = batch.get("segment_ids"), batch.get("positions")
    hidden = decoder.hidden_states(params, batch["inputs"], cfg.model, segments=segments, positions=positions)
    found = causal_lm.of_hidden(params, hidden.final, batch, cfg.model)
    logits, weight = hidden.router_logits, batch["loss_weight"].astype(jnp.float32)
    terms = {
        "balance": jax.vmap(lambda x: moe.balance(x, weight, cfg.model.experts))(logits).mean(0),
        "router_z": jax.vmap(lambda x: moe.z_loss(x, weight))(logits).mean(0),
    }
    added = found.weights * (cfg.balance * terms["balance"] + cfg.z_loss * terms["router_z"])
    total = found.weights.sum()
    metrics = {name: ((found.weights * term).sum(), total) for name, term in terms.items()}
    return Losses(found.sums + added, found.weights, found.metrics | metrics)
