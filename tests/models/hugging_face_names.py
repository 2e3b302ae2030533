"""Hugging Face state dicts -> our parameter trees, as far as the golden tests need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpt import weights
from jaxpt.models import decoder

StateDict = dict[str, np.ndarray]
Linear = tuple[np.ndarray, np.ndarray | None]  # [out, in], [out]


def llama(state: StateDict, cfg: decoder.Config) -> dict[str, Any]:
    """LlamaForCausalLM: separate projections, RMSNorm, optional head."""
    names = {
        ("attention", "query"): "self_attn.q_proj",
        ("attention", "key"): "self_attn.k_proj",
        ("attention", "value"): "self_attn.v_proj",
        ("attention", "out"): "self_attn.o_proj",
        ("mlp", "gate"): "mlp.gate_proj",
        ("mlp", "up"): "mlp.up_proj",
        ("mlp", "down"): "mlp.down_proj",
    }

    def layer(i: int) -> dict[str, Any]:
        at = f"model.layers.{i}."
        return {
            "attention_norm": {"scale": state[at + "input_layernorm.weight"]},
            "mlp_norm": {"scale": state[at + "post_attention_layernorm.weight"]},
            **_grouped({ours: (state[f"{at}{theirs}.weight"], None) for ours, theirs in names.items()}),
        }

    tree = _tree(state["model.embed_tokens.weight"], {"scale": state["model.norm.weight"]}, layer, cfg)
    return tree if cfg.tied_head else tree | {"head": _linear((state["lm_head.weight"], None))}


def gpt2(state: StateDict, cfg: decoder.Config) -> dict[str, Any]:
    """GPT2LMHeadModel: Conv1D matrices are [in, out]; query, key and value lie side by side in one."""

    def conv(name: str) -> Linear:
        return state[name + ".weight"].T, state[name + ".bias"]

    def layer(i: int) -> dict[str, Any]:
        at = f"transformer.h.{i}."
        kernel, bias = conv(at + "attn.c_attn")
        fused = zip(np.split(kernel, 3), np.split(bias, 3), strict=True)
        linears: dict[tuple[str, str], Linear] = dict(
            zip([("attention", n) for n in ("query", "key", "value")], fused, strict=True)
        )
        linears[("attention", "out")] = conv(at + "attn.c_proj")
        linears[("mlp", "up")], linears[("mlp", "down")] = conv(at + "mlp.c_fc"), conv(at + "mlp.c_proj")
        return {
            "attention_norm": _layer_norm(state, at + "ln_1"),
            "mlp_norm": _layer_norm(state, at + "ln_2"),
            **_grouped(linears),
        }

    tree = _tree(state["transformer.wte.weight"], _layer_norm(state, "transformer.ln_f"), layer, cfg)
    return tree | {"positions": jnp.asarray(state["transformer.wpe.weight"])}


def neox(state: StateDict, cfg: decoder.Config) -> dict[str, Any]:
    """GPTNeoXForCausalLM: query, key and value of each head lie together, head after head."""

    def linear(name: str) -> Linear:
        return state[name + ".weight"], state[name + ".bias"]

    def layer(i: int) -> dict[str, Any]:
        at = f"gpt_neox.layers.{i}."
        kernel, bias = linear(at + "attention.query_key_value")
        kernel = kernel.reshape(cfg.heads, 3, cfg.per_head, cfg.width)
        bias = bias.reshape(cfg.heads, 3, cfg.per_head)
        linears: dict[tuple[str, str], Linear] = {
            ("attention", name): (kernel[:, j].reshape(-1, cfg.width), bias[:, j].reshape(-1))
            for j, name in enumerate(("query", "key", "value"))
        }
        linears[("attention", "out")] = linear(at + "attention.dense")
        linears[("mlp", "up")] = linear(at + "mlp.dense_h_to_4h")
        linears[("mlp", "down")] = linear(at + "mlp.dense_4h_to_h")
        return {
            "attention_norm": _layer_norm(state, at + "input_layernorm"),
            "mlp_norm": _layer_norm(state, at + "post_attention_layernorm"),
            **_grouped(linears),
        }

    final = _layer_norm(state, "gpt_neox.final_layer_norm")
    tree = _tree(state["gpt_neox.embed_in.weight"], final, layer, cfg)
    return tree | {"head": _linear((state["lm_head.weight"], None))}


def _linear(given: Linear) -> dict[str, Any]:
    kernel, bias = given
    p: dict[str, Any] = {"kernel": weights.DenseMatrix(jnp.asarray(kernel))}
    return p if bias is None else p | {"bias": jnp.asarray(bias)}


def _layer_norm(state: StateDict, name: str) -> dict[str, np.ndarray]:
    return {"scale": state[name + ".weight"], "bias": state[name + ".bias"]}


def _grouped(linears: dict[tuple[str, str], Linear]) -> dict[str, Any]:
    groups: dict[str, Any] = {"attention": {}, "mlp": {}}
    for (group, name), given in linears.items():
        groups[group][name] = _linear(given)
    return groups


def _tree(
    embedding: np.ndarray, final_norm: dict[str, np.ndarray], layer: Callable[[int], Any], cfg: decoder.Config
) -> dict[str, Any]:
    from jax import tree

    stacked = tree.map(lambda *x: jnp.stack(x), *[layer(i) for i in range(cfg.layers)])
    return {
        "embedding": jnp.asarray(embedding),
        "blocks": stacked,
        "final_norm": tree.map(jnp.asarray, final_norm),
    }
