"""Operations of one training step, forward and backward, counted from the forms of a model's matrices.

Counted are every matrix by its form (`Matrix.cost`) times its layers, tied output matrices, and the two products of
attention, 6 L B S T H K, the masked half of a causal score in neither number. Not counted are embedding look-ups, norms,
activations, softmax, the optimizer. Executed adds the second forward pass of remat="full", but not the attention that
remat="dots" repeats.
Padding costs like any token. `params` are parameters, their specs or their shapes.
"""

from __future__ import annotations

from typing import Any

from jaxpt import weights
from jaxpt.core.types import Params
from jaxpt.layers.stack import StackConfig
from jaxpt.models import decoder, encoder, encoder_decoder, gpt_bert
from jaxpt.weights import Cost

NOTHING = Cost(0.0, 0.0)


def of(params: Params, cfg: Any, batch_size: int, sequence_length: int, predicted: int | None = None) -> Cost:
    """Of any model of one stack that predicts tokens.

    Args:
      predicted: tokens that the head sees, where they are not all.

    Raises:
      TypeError: another configuration.
    """
    if isinstance(cfg, gpt_bert.Config):
        return gpt_bert_flops(params, cfg, batch_size, sequence_length, predicted)
    if isinstance(cfg, encoder.Config):
        predicted = batch_size * sequence_length if predicted is None else predicted
        return encoder_flops(params, cfg, batch_size, sequence_length, predicted)
    if isinstance(cfg, decoder.Config):
        return decoder_flops(params, cfg, batch_size, sequence_length, predicted)
    raise TypeError(f"no count of operations for {type(cfg).__module__}.{type(cfg).__name__}")


def decoder_flops(
    params: Params, cfg: decoder.Config, batch_size: int, sequence_length: int, predicted: int | None = None
) -> Cost:
    """Of a decoder.

    Args:
      predicted: tokens that the head sees, where they are not all.
    """
    tokens = batch_size * sequence_length
    predicted = tokens if predicted is None else predicted
    attended = batch_size * sequence_length**2
    return total(
        stack_flops(params, cfg, tokens, attended),
        *(m.cost(predicted) for path, m in weights.matrices(params).items() if path.startswith("head/")),
        product(predicted, cfg.vocab_size, cfg.width) if cfg.tied_head else NOTHING,
    )


def encoder_flops(
    params: Params, cfg: encoder.Config, batch_size: int, sequence_length: int, predicted: int = 0
) -> Cost:
    """Of an encoder with the heads that it has.

    Args:
      predicted: tokens that the masked-token head sees; one a sequence is pooled, all are judged by an rtd_head.
    """
    tokens = batch_size * sequence_length
    attended = batch_size * sequence_length**2
    seen = {"projection": tokens, "mlm": predicted, "rtd": tokens, "pooler": batch_size}
    found = [stack_flops(params, cfg, tokens, attended)]
    for path, matrix in weights.matrices(params).items():
        room = path.split("/")[0]
        if room in seen:
            found.append(matrix.cost(seen[room]))
    if cfg.mlm_head:
        found.append(product(predicted, cfg.vocab_size, cfg.table_width))
    if cfg.disentangled is not None:  # queries with every distance, keys with every distance, in every layer
        distances = min(2 * sequence_length - 1, cfg.disentangled.size)
        found += [product(tokens, cfg.layers * distances, cfg.heads * cfg.per_head)] * 2
    return total(*found)


def gpt_bert_flops(
    params: Params, cfg: gpt_bert.Config, batch_size: int, sequence_length: int, predicted: int | None = None
) -> Cost:
    """Of GPT-BERT. The weighted sums of earlier sublayers, no matrix products, are not counted."""
    tokens = batch_size * sequence_length
    predicted = tokens if predicted is None else predicted
    distances = min(2 * sequence_length - 1, cfg.relative.size)
    return total(
        stack_flops(params, cfg, tokens, batch_size * sequence_length**2),
        product(tokens, 2 * cfg.layers * distances, cfg.heads * cfg.per_head),
        params["head"]["dense"]["kernel"].cost(predicted),
        product(predicted, cfg.vocab_size, cfg.width),
    )


def encoder_decoder_flops(
    params: Params, cfg: encoder_decoder.Config, batch_size: int, input_length: int, target_length: int
) -> Cost:
    """Of an encoder-decoder. Cross-attention multiplies the inputs' states with keys and values in every decoder layer."""
    inputs, targets = batch_size * input_length, batch_size * target_length
    decoding = cfg.of_decoder
    of_memory = [params["decoder"]["blocks"]["cross"][name]["kernel"] for name in ("key", "value")]
    fewer, more = (total(*(w.cost(tokens) for w in of_memory)) for tokens in (targets, inputs))
    moved = Cost(
        decoding.layers * (more.nominal - fewer.nominal),
        decoding.layers * _again(decoding) * (more.executed - fewer.executed),
    )
    attended = batch_size * target_length * (target_length + input_length)
    return total(
        stack_flops(params["encoder"], cfg, inputs, batch_size * input_length**2),
        stack_flops(params["decoder"], decoding, targets, attended),
        moved,
        *(m.cost(targets) for path, m in weights.matrices(params).items() if path.startswith("head/")),
        product(targets, cfg.vocab_size, cfg.width) if cfg.tied_head else NOTHING,
    )


def stack_flops(params: Params, cfg: StackConfig, tokens: int, attended: int) -> Cost:
    """Of the blocks in params["blocks"], each of which sees `tokens` tokens and `attended` pairs of query and key."""
    again = _again(cfg)
    attention = 6.0 * cfg.layers * attended * cfg.heads * cfg.per_head
    nominal, executed = attention, attention * again
    for path, matrix in weights.matrices(params).items():
        if path.startswith("blocks/"):
            cost = matrix.cost(tokens) if "/experts/" not in path else _experts(matrix, cfg, tokens)
            nominal += cfg.layers * cost.nominal
            executed += cfg.layers * cost.executed * again
    return Cost(nominal, executed)


def _experts(matrix: weights.Matrix, cfg: StackConfig, tokens: int) -> Cost:
    """Of the experts' matrices in one place: k of them see a token, and they are multiplied as dense ones."""
    if cfg.experts is None:
        raise ValueError("there are matrices of experts, but the model's configuration has experts=None")
    seen = tokens * cfg.experts.per_token
    return Cost(matrix.cost(seen).nominal, product(seen, *matrix.shape).executed)


def product(tokens: int, out_size: int, in_size: int) -> Cost:
    """Of tokens times a plain matrix."""
    operations = 6.0 * tokens * out_size * in_size
    return Cost(operations, operations)


def total(*costs: Cost) -> Cost:
    """Their sum."""
    return Cost(sum(c.nominal for c in costs), sum(c.executed for c in costs))


def _again(cfg: StackConfig) -> float:
    return 4 / 3 if cfg.remat == "full" else 1.0
