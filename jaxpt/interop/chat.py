"""Chat messages -> token ids, so that no text can end its own turn.

Markers are ids that text never encodes to; roles, texts and newlines are encoded apart and joined as ids. Chat templates
that come with models are programs (Jinja): they are recognised, never run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpt.core.names import nearest_error
from jaxpt.data.vocabularies import Vocabulary

ROLES = ("system", "user", "assistant")
Messages = Sequence[tuple[str, str]]  # (role, text)


@dataclasses.dataclass(frozen=True)
class ChatML:
    """<|im_start|>ROLE newline TEXT<|im_end|> newline, for vocabularies whose BOS and EOS are these markers.

    Attributes:
      system: the first turn of chats that do not begin with one of their own; none if None.
    """

    system: str | None = None

    def encode(self, messages: Messages, vocabulary: Vocabulary) -> list[int]:
        """The ids of a chat, open for the assistant's next turn.

        Raises:
          ValueError: no messages, or an unknown role.
        """
        if not messages:
            raise ValueError("a chat needs at least one (role, text) message")
        if self.system is not None and messages[0][0] != "system":
            messages = [("system", self.system), *messages]
        newline, ids = vocabulary.encode("\n"), []
        for role, text in messages:
            if role not in ROLES:
                raise nearest_error("role", role, ROLES)
            ids += [vocabulary.bos_id, *vocabulary.encode(role), *newline, *vocabulary.encode(text)]
            ids += [vocabulary.eos_id, *newline]
        return [*ids, vocabulary.bos_id, *vocabulary.encode("assistant"), *newline]


SMOLLM2 = ChatML("You are a helpful AI assistant named SmolLM, trained by Hugging Face")


def recognise(settings: Mapping[str, Any]) -> ChatML | None:
    """The format of a model by the template in its metadata or tokenizer_config.json; None if it has none we know."""
    template = settings.get("tokenizer.chat_template", settings.get("chat_template"))
    if not isinstance(template, str) or "<|im_start|>" not in template or "<|im_end|>" not in template:
        return None
    return SMOLLM2 if SMOLLM2.system is not None and SMOLLM2.system in template else ChatML()
