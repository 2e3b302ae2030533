"""The count of ELECTRA's authors: every number of their table, to a tenth of a percent."""

from __future__ import annotations

import pytest

from jaxpt.models import encoder
from jaxpt.models.electra_flops import electra_flops, mlm_flops
from jaxpt.models.generator import Generator
from jaxpt.objectives.corruption import Masking
from jaxpt.objectives.replaced_tokens import ReplacedTokens


def bert(width, layers, embedding=None, vocabulary=30522):
    return encoder.Config(
        vocab_size=vocabulary, width=width, layers=layers, heads=width // 64, ffn=4 * width, embedding_size=embedding,
        rtd_head="token",
    )  # fmt: skip


def electra(model, width):
    masking = Masking(mask_id=103, vocab_size=30522)
    return ReplacedTokens(model=model, masking=masking, generator=Generator(width=width))


@pytest.mark.parametrize(
    ("count", "cfg", "batch", "steps", "length", "expected"),
    [
        (mlm_flops, bert(256, 12, 128), 1, 1, 128, 7.644e9),
        (electra_flops, electra(bert(256, 12, 128), 1 / 4), 1, 1, 128, 1.0107e10),
        (mlm_flops, bert(768, 12), 1, 1, 512, 2.511e11),
        (electra_flops, electra(bert(768, 12), 1 / 3), 1, 1, 512, 3.276e11),
        (mlm_flops, bert(256, 12, 128), 128, 1.45e6, 128, 1.419e18),
        (electra_flops, electra(bert(256, 12, 128), 1 / 4), 128, 1e6, 128, 1.294e18),
        (mlm_flops, bert(768, 12), 256, 1e6, 512, 6.43e19),
        (electra_flops, electra(bert(768, 12), 1 / 3), 256, 766e3, 512, 6.43e19),
        (mlm_flops, bert(1024, 24, vocabulary=50265), 8000, 5e5, 512, 3.19e21),
        (electra_flops, electra(bert(1024, 24), 1 / 4), 2048, 4e5, 512, 7.12e20),
    ],
)
def test_the_table_of_the_paper(count, cfg, batch, steps, length, expected):
    assert count(cfg, batch_size=batch, steps=steps, sequence_length=length) == pytest.approx(expected, rel=1e-3)
