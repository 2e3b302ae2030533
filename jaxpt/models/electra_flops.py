"""Operations as ELECTRA's authors count them (arXiv 2003.10555, appendix F), for comparison with their tables.

    electra_flops(cfg, batch_size=128, steps=1_000_000, sequence_length=128)        # of a `ReplacedTokens`; 1.294e18
    mlm_flops(encoder.Config(...), batch_size=128, steps=1_450_000, sequence_length=128)

Per token and forward pass, a multiplication and an addition being two; training is taken as twice the forward pass. Counted
are also softmax (5), dropout (4), layer norm (5), gelu (8), biases, and the look-up of tokens as a dense product with their
table. The output softmax sees 15.625 % of the tokens. `jaxpt.models.flops` counts what this project's ledgers report:
matrices and attention alone, but the backward pass at twice the forward one.
"""

from __future__ import annotations

from typing import Any

from jaxpt.models.encoder import Config

SOFTMAX, DROPOUT, NORM, GELU = 5, 4, 5, 8
PREDICTED = 0.15625
TYPES = 2  # of sentences


def layer(cfg: Config, length: int) -> float:
    """Of a token in one block."""
    inner = cfg.heads * cfg.per_head
    scores = length * cfg.heads * (SOFTMAX + DROPOUT + 1)  # 1: the scale
    residual = 1 + 1 + DROPOUT  # bias, sum, dropout
    attention = 3 * inner * (2 * cfg.width + 1) + 2 * inner * length + scores + 2 * cfg.width * length
    # the first norm of a layer is counted for one number alone
    out = 2 * cfg.width**2 + residual * cfg.width + NORM
    feed_forward = 4 * cfg.width * cfg.ffn + (GELU + 1) * cfg.ffn + (residual + NORM) * cfg.width
    return attention + out + feed_forward


def embedding(cfg: Config, length: int) -> float:
    """Of a token before the first block."""
    each = 2 * cfg.vocab_size + 2 * (length + TYPES) + 2 + NORM + DROPOUT
    projection = (2 * cfg.table_width + 1) * cfg.width if cfg.table_width != cfg.width else 0
    return each * cfg.table_width + projection


def masked_token_head(cfg: Config) -> float:
    """Of a token in the output softmax, a share of which is predicted."""
    size = cfg.table_width
    return PREDICTED * ((2 * cfg.width + 1 + GELU + NORM) * size + (2 * size + SOFTMAX + 2) * cfg.vocab_size)


def detection_head(cfg: Config) -> float:
    """Of a token that is judged; its activation is counted like dropout."""
    return 2 * cfg.width**2 + (1 + DROPOUT + 2) * cfg.width


def mlm_flops(cfg: Config, *, batch_size: int, steps: float, sequence_length: int) -> float:
    """Of pretraining with masked tokens."""
    each = cfg.layers * layer(cfg, sequence_length) + embedding(cfg, sequence_length) + masked_token_head(cfg)
    return 2 * each * sequence_length * batch_size * steps


def electra_flops(objective: Any, *, batch_size: int, steps: float, sequence_length: int) -> float:
    """Of pretraining both models of a `ReplacedTokens`."""
    cfg = objective.discriminator_model
    each = cfg.layers * layer(cfg, sequence_length) + embedding(cfg, sequence_length) + detection_head(cfg)
    judged = 2 * each * sequence_length * batch_size * steps
    return judged + mlm_flops(
        objective.generator_model, batch_size=batch_size, steps=steps, sequence_length=sequence_length
    )
