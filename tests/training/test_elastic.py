"""A checkpoint goes on on any mesh with the same batches, and says itself what it is a checkpoint of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from tiny_run import Tiny

from jaxpt import weights
from jaxpt.core import config
from jaxpt.core import spec as specs
from jaxpt.models import decoder
from jaxpt.sharding import MeshConfig, make_mesh, shardings
from jaxpt.training.checkpoint import CheckpointError, read_config, restore_params_only
from jaxpt.training.events import at
from jaxpt.training.run import RunConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_records(tmp_path_factory.mktemp("records") / "data")


@pytest.fixture(scope="module")
def moved(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run whose updates 1-3 ran on 8 devices, 4-6 on 4, 7-9 on 1 and 10-12 on 2 x 4."""
    out = tmp_path_factory.mktemp("moved") / "run"
    meshes = [((1, 8, 1), 8), ((2, 2, 1), 4), (None, 1), ((2, 1, 4), 8)]
    for part, (sizes, count) in enumerate(meshes, 1):
        mesh = None if sizes is None else make_mesh(MeshConfig(*sizes), jax.devices()[:count])
        stop = [at(3 * part + 1, lambda t, s: {}[t])] if part < 4 else []
        tiny = Tiny(str(out), mesh=sizes)
        if stop:
            with pytest.raises(KeyError):
                tiny_run.run(tiny, data, mesh=mesh, events=stop)
        else:
            result = tiny_run.run(tiny, data, mesh=mesh)
    assert result.resumed_from == 9
    return out, result


def test_from_8_devices_to_4_to_1_to_2_by_4_the_losses_are_those_of_one(data: Path, moved: tuple[Path, Any]) -> None:
    whole = tiny_run.run(Tiny(), data)
    result = moved[1]
    assert [step for step, _ in result.curve] == list(range(1, 13))
    assert [loss for _, loss in result.curve] == pytest.approx([loss for _, loss in whole.curve], rel=1e-5)
    assert result.ledger == whole.ledger


def test_a_folder_is_enough_to_have_the_model_again(moved: tuple[Path, Any]) -> None:
    """Neither the configuration nor the tree is known: both come out of the checkpoint."""
    out, result = moved
    described = read_config(out)
    cfg = config.from_dict(described["model"], [decoder.Config, *weights.FORMS.values()])
    assert cfg == tiny_run.MODEL and hash(cfg) == hash(tiny_run.MODEL)
    spec = decoder.spec(cfg)
    params = restore_params_only(out, specs.abstract(spec))
    jax.tree.map(np.testing.assert_array_equal, params, result.state.params)
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    places = shardings(spec, mesh)
    shapes = jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), specs.abstract(spec), places
    )
    spread = restore_params_only(out, shapes)
    assert len(spread["embedding"].sharding.device_set) == 8
    jax.tree.map(np.testing.assert_array_equal, spread, result.state.params)
    ids = jnp.arange(12).reshape(2, 6)
    assert decoder.apply(params, ids, cfg).shape == (2, 6, 259)


def test_the_configuration_is_that_of_the_newest_good_checkpoint(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no configuration in .*config.json.*checkpoints are \[\]"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"config": {"rate": 5}}))
    assert read_config(tmp_path) == {"rate": 5}
    tiny_run.run(Tiny(str(tmp_path), steps=6), data)
    (tmp_path / "checkpoints/6/meta/metadata").write_text("{")
    (tmp_path / "config.json").write_text("nothing")
    assert read_config(tmp_path)["rate"] == 1e-2 and read_config(tmp_path, step=3)["rate"] == 1e-2
    with pytest.raises(CheckpointError, match="checkpoints/6/meta/metadata cannot be read"):
        read_config(tmp_path, step=6)
    content = json.loads((tmp_path / "checkpoints/3/meta/metadata").read_text())
    content["content"]["config"]["rate"] = 1.0
    (tmp_path / "checkpoints/3/meta/metadata").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="checkpoints/3/meta/metadata is not what was saved"):
        read_config(tmp_path, step=3)


def test_a_description_comes_back_as_what_it_described() -> None:
    known = [decoder.Config, RunConfig, MeshConfig, *weights.FORMS.values()]
    whole = {
        "run": RunConfig(3, profile="1:2", out="a"),
        "mesh": MeshConfig(fsdp=2),
        "model": tiny_run.MODEL,
        "x": (1, 2),
    }
    assert config.from_dict(json.loads(json.dumps(config.to_dict(whole))), known) == whole
    assert config.from_dict({"class": "MeshConfig", "fsdp": 4}, known) == MeshConfig(fsdp=4)  # defaults for the rest


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"class": "MeshConfi"}, "unknown class 'MeshConfi'; did you mean 'MeshConfig'"),
        ({"class": "MeshConfig", "fsd": 4}, "unknown field of MeshConfig 'fsd'; did you mean 'fsdp'"),
    ],
)
def test_a_description_of_something_else_is_refused(described: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.from_dict(described, [MeshConfig, RunConfig])
    with pytest.raises(ValueError, match="two classes are named 'MeshConfig'"):
        config.from_dict({}, [MeshConfig, type("MeshConfig", (), {})])
