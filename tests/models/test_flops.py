"""Operations of encoders and encoder-decoders are those counted by hand (of decoders: tests/training/test_ledger.py)."""

from __future__ import annotations

import dataclasses

import pytest

from jaxpt.layers.disentangled import Disentangled
from jaxpt.models import decoder, encoder, encoder_decoder
from jaxpt.models.flops import decoder_flops, encoder_decoder_flops, encoder_flops

B, S, T, V = 3, 10, 7, 50
D, F, L, H = 16, 24, 2, 2
SIZES = {"layers": L, "width": D, "heads": H, "ffn": F, "vocab_size": V}
BLOCK = 4 * D * D + 2 * D * F  # entries of a block's matrices, without a gate


def attention(layers, pairs):
    return 6 * layers * B * pairs * D


def test_a_decoder_whose_head_sees_fewer_tokens():
    cfg = decoder.Config(**SIZES)
    spec = decoder.spec(cfg)
    whole, less = (decoder_flops(spec, cfg, B, S, n).nominal for n in (None, 5))
    assert whole - less == 6 * (B * S - 5) * V * D
    tied = dataclasses.replace(cfg, tied_head=True)
    assert decoder_flops(decoder.spec(tied), tied, B, S, 5).nominal == less


def test_an_encoder_and_its_heads():
    cfg = encoder.Config(**SIZES)
    body = 6 * B * S * L * BLOCK + attention(L, S * S)
    assert encoder_flops(encoder.spec(cfg), cfg, B, S).nominal == body
    cfg = dataclasses.replace(cfg, mlm_head=True, pooler=True, rtd_head="token", embedding_size=8)
    heads = 6 * (9 * (D * 8 + V * 8) + B * D * D + B * S * (D * D + D) + B * S * D * 8)
    assert encoder_flops(encoder.spec(cfg), cfg, B, S, predicted=9).nominal == body + heads
    again = dataclasses.replace(cfg, remat="full")
    found = encoder_flops(encoder.spec(again), again, B, S, predicted=9)
    assert found.nominal == body + heads and found.executed == pytest.approx(4 / 3 * body + heads)


def test_disentangled_attention_multiplies_with_every_distance_twice():
    plain = encoder.Config(**SIZES)
    cfg = dataclasses.replace(plain, learned_positions=0, disentangled=Disentangled(buckets=32, max_position=64))
    more = encoder_flops(encoder.spec(cfg), cfg, B, S).nominal - encoder_flops(encoder.spec(plain), plain, B, S).nominal
    assert more == 2 * 6 * L * B * S * (2 * S - 1) * D


def test_an_encoder_decoder_reads_its_memory_in_every_layer():
    cfg = encoder_decoder.Config(**SIZES, decoder_layers=3, activation="relu")
    found = encoder_decoder_flops(encoder_decoder.spec(cfg), cfg, B, S, T).nominal
    encoding = 6 * B * S * L * BLOCK + attention(L, S * S)
    self_and_feed_forward = 6 * B * T * 3 * BLOCK + attention(3, T * T)
    crossing = 6 * 3 * (B * T * 2 * D * D + B * S * 2 * D * D) + attention(3, T * S)
    assert found == encoding + self_and_feed_forward + crossing + 6 * B * T * V * D
