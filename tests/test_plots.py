"""The picture of a law is written, in folders that were not there."""

from __future__ import annotations

import numpy as np

from jaxpt import plots
from jaxpt.analysis import scaling_laws as s


def test_the_picture(tmp_path):
    N = np.geomspace(1, 16, 5)
    law = s.AsymptoteLaw(2.0, 1.5, 0.5)
    x = np.geomspace(1, 64, 50)
    y = law.loss(x)
    path = tmp_path / "deep" / "law.png"
    plots.law(path, {"dense": (N, law.loss(N))}, {"fit": (x, y, y - 0.1, y + 0.1)}, title="t", x="N", y="loss")
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 5000
