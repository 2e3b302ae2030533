"""Architectures of others, one file each: their configuration <-> ours, their names <-> ours.

A new family is one file and one line in `FAMILIES`; `tests/interop/test_hugging_face.py` runs every member.
"""

from jaxpt.interop.families import bert, gpt2, gpt_neox, llama
from jaxpt.interop.families.base import Family

FAMILIES: dict[str, Family] = {f.model_type: f for f in (llama.FAMILY, gpt2.FAMILY, gpt_neox.FAMILY, bert.FAMILY)}

__all__ = ["FAMILIES", "Family"]
