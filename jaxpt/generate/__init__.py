"""Texts from a decoder: batched, bucketed, reproducible.

    model = text_model.load("smollm2")                              # or a *.gguf file, or a Hugging Face folder
    engine = Engine.of(model)
    request = engine.chat([("user", "What is 2 + 2?")], max_new=64)
    for completion in engine.complete([request]): print(completion.text)

    python -m jaxpt.generate --model smollm2 --chat "What is 2 + 2?"

A text follows from its request alone: the request's seed makes its random numbers, and what else is in the batch
changes its logits by no more than rounding.
"""

from jaxpt.generate.engine import Completion, Engine, Request

__all__ = ["Completion", "Engine", "Request"]
