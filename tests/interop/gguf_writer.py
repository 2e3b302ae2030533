"""Writes small GGUF files as the specification says, for tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

TYPES = {bool: (7, "?"), int: (4, "<I"), float: (6, "<f")}


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(x):
    if isinstance(x, str):
        return struct.pack("<I", 8) + text(x)
    if isinstance(x, list):
        items = b"".join(text(i) if isinstance(i, str) else struct.pack(TYPES[type(i)][1], i) for i in x)
        kind = 8 if isinstance(x[0], str) else TYPES[type(x[0])][0]
        return struct.pack("<IIQ", 9, kind, len(x)) + items
    kind, code = TYPES[type(x)]
    return struct.pack("<I", kind) + struct.pack(code, x)


def gguf(metadata, tensors, version=3):
    """tensors: name -> array of float32 or float16, or (shape, format, bytes)."""
    kinds = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}
    listed, data = b"", b""
    for name, given in tensors.items():
        shape, kind, raw = (given.shape, kinds[given.dtype], given.tobytes()) if hasattr(given, "shape") else given
        data += b"\0" * (-len(data) % 32)
        listed += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        listed += struct.pack("<IQ", kind, len(data))
        data += raw
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(k) + value(v) for k, v in metadata.items()) + listed
    return head + b"\0" * (-len(head) % 32) + data


def tiny_llama(path: Path, cfg, state, kind=np.float32):
    """A file of the LLaMA whose Hugging Face tensors are `state`, rotary pairs side by side as the format has them."""

    def adjacent(w, heads):
        return w.reshape(heads, 2, -1, w.shape[-1]).transpose(0, 2, 1, 3).reshape(w.shape)

    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if "lm_head.weight" in state:
        tensors["output.weight"] = state["lm_head.weight"]
    for i in range(cfg.layers):
        for theirs, ours in names.items():
            w = state[f"model.layers.{i}.{theirs}.weight"]
            heads = {"attn_q": cfg.heads, "attn_k": cfg.groups}.get(ours)
            tensors[f"blk.{i}.{ours}.weight"] = w if heads is None else adjacent(w, heads)
    tensors = {k: np.ascontiguousarray(w if w.ndim == 1 else w.astype(kind)) for k, w in tensors.items()}
    path.write_bytes(gguf(metadata(cfg), tensors))
    return tensors


def metadata(cfg):
    alphabet = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]  # 256 bytes
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "he"]
    return {
        "general.architecture": "llama",
        "llama.block_count": cfg.layers,
        "llama.embedding_length": cfg.width,
        "llama.feed_forward_length": cfg.ffn,
        "llama.attention.head_count": cfg.heads,
        "llama.attention.head_count_kv": cfg.groups,
        "llama.rope.freq_base": cfg.rotary_base,
        "llama.rope.dimension_count": cfg.per_head,
        "llama.attention.layer_norm_rms_epsilon": cfg.norm_eps,
        "llama.vocab_size": cfg.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (len(tokens) - 3)],
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": "<|im_start|>...<|im_end|>",
    }
