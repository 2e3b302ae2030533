"""Architectures of others, one file each: their configuration <-> ours, their names <-> ours.

A new family is one file and one line in `FAMILIES`; `tests/interop/test_hugging_face.py` runs every member.
"""

from jaxpt.interop.families import bert, deberta_v2, electra, gpt2, gpt_neox, llama, t5
from jaxpt.interop.families.base import Family

MODULES = (llama, gpt2, gpt_neox, bert, electra, deberta_v2, t5)
FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in MODULES}

__all__ = ["FAMILIES", "Family"]
