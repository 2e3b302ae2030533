"""Checkpoints: Orbax's CheckpointManager in one small module, plus a fingerprint of every array.

    OUT/checkpoints/STEP/params/     parameters, trainable and fixed: a flat dict path -> array
                        /optimizer/  the rest of the state, the same way
                        /meta/       JSON: config, loader fingerprint, ledger, fingerprints of all arrays

A folder appears under its number only when it is complete, and old ones are deleted only after that. On
restore every array's fingerprint is computed again: a checkpoint that cannot be read or differs is set
aside, and the one before is used. It restores onto any mesh and any number of processes, all of which see the
same folder and agree on what is good.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from jaxpt.core import trees
from jaxpt.core.types import Array, Params, PyTree, UInt32
from jaxpt.training.state import TrainState

PARAMS = ("trainable/", "fixed/")
FOLDER = "checkpoints"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or none that can be read."""


class ResumeError(ValueError):
    """A readable checkpoint of another run or another model."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      out: the run's folder; they live in OUT/checkpoints.
      keep: how many of the newest are kept.
    """

    def __init__(self, out: str | Path, keep: int = 2) -> None:
        import orbax.checkpoint as ocp

        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(out).resolve() / FOLDER
        self._ocp = ocp
        self._pending: int | None = None
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._known = _agreed(self.steps())  # by all processes alike, where a listing might lag

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint on disk, oldest first."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts to save, unless this step is saved; returns when the arrays are copied and may be reused.

        Raises:
          CheckpointError: this or an earlier save failed, for example on a full disk.
        """
        self.wait()
        step = int(state.step)
        if step in self._known:
            return
        self._known.add(step)
        arrays = dict(trees.leaves_with_path(state))
        params, rest = _parts(arrays)
        args, self._pending = self._ocp.args, step
        composite = args.Composite(
            params=args.StandardSave(params),
            optimizer=args.StandardSave(rest),
            meta=args.JsonSave(_sealed(meta | {"arrays": _described(arrays), "fingerprints": fingerprints(arrays)})),
        )
        self._guard(lambda: self._manager.save(step, args=composite))

    def check(self) -> None:
        """Raises CheckpointError if a save in the background has failed; does not wait for it."""
        if self._pending is not None:
            self._guard(self._manager.check_for_errors)

    def wait(self) -> None:
        """Until the save in progress is complete on disk.

        Raises:
          CheckpointError: it failed.
        """
        if self._pending is not None:
            self._guard(self._manager.wait_until_finished)
            self._pending = None

    def close(self) -> None:
        """Waits, then ends Orbax's threads."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # a save that failed has been reported, and is reported again here
                self._manager.close()

    def restore(
        self,
        target: Callable[[int], TrainState],
        accept: Callable[[dict[str, Any]], None] = lambda meta: None,
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest good checkpoint as (state, meta), or None where there is none at all.

        Args:
          target: step -> a state of arrays or shapes with shardings, as it is after that many updates.
          accept: raises ResumeError where the meta is of another run.

        Raises:
          CheckpointError: there are checkpoints, and none can be read; or a save in progress failed.
        """
        self.wait()
        bad: list[tuple[int, str]] = []
        for step in sorted(self._known, reverse=True):
            try:
                state, meta = self._restore(step, target, accept)
            except ResumeError:
                raise
            except Exception as error:  # Orbax raises whatever its storage says
                bad.append((step, _reason(error)))
                warnings.warn(f"checkpoint {self.folder / str(step)} is not usable: {bad[-1][1]}", stacklevel=2)
                continue
            self._set_aside([step for step, _ in bad])
            return state, meta
        if bad:
            reasons = "; ".join(f"{self.folder / str(step)}: {reason}" for step, reason in bad)
            raise CheckpointError(f"no checkpoint can be read ({reasons}); restore a copy, or start with another --out")
        return None

    def _restore(
        self, step: int, target: Callable[[int], TrainState], accept: Callable[[dict[str, Any]], None]
    ) -> tuple[TrainState, dict[str, Any]]:
        """One checkpoint; raises on every process where any of them cannot read its part."""
        folder = self.folder / str(step)
        with _together():
            meta = read_meta(folder)
            accept(meta)
        state = target(step)
        wanted = {path: shape_of(x) for path, x in trees.leaves_with_path(state)}
        _check_arrays(folder, meta["arrays"], _described(wanted))
        params, rest = _parts(wanted)
        with _together():
            arrays = {
                **self._read(folder / "params", params),
                **self._read(folder / "optimizer", rest),
                **_empty(wanted),
            }
        _compare(arrays, meta["fingerprints"])
        return jax.tree.unflatten(jax.tree.structure(state), [arrays[path] for path in wanted]), meta

    def _read(self, folder: Path, wanted: dict[str, Any]) -> dict[str, Array]:
        """Arrays by path. Not through the manager: it would wait for a process that has failed."""
        handler = self._ocp.StandardCheckpointHandler()
        try:
            return handler.restore(folder, args=self._ocp.args.StandardRestore(wanted))
        finally:
            handler.close()

    def _set_aside(self, steps: list[int]) -> None:
        """Renames broken checkpoints, so that their steps can be saved again; nothing is deleted."""
        for step in steps if jax.process_index() == 0 else []:
            new = next(p for i in range(1000) if not (p := self.folder / f"broken.{step}.{i}").exists())
            os.rename(self.folder / str(step), new)
        if steps:
            self._known -= set(steps)
            with _together():  # the folders have their new names before anyone lists them
                pass
            self._manager.reload()

    def _guard(self, act: Callable[[], Any]) -> None:
        """Runs `act`; an error of the save in progress becomes a CheckpointError that says what to do."""
        try:
            act()
        except Exception as error:
            step, self._pending = self._pending, None
            self._known.discard(-1 if step is None else step)
            free = shutil.disk_usage(self.folder).free
            intact = [s for s in self.steps() if s != step]
            last = f"checkpoint {intact[-1]} is intact" if intact else "there is no earlier checkpoint"
            raise CheckpointError(
                f"could not save step {step} in {self.folder} ({free:,} bytes free): {_reason(error)}; "
                f"{last}. "
                f"Make room, then type the same command again: the run goes on from there"
            ) from error


def restore_params_only(out: str | Path, target: Params, step: int | None = None) -> Params:
    """The parameters of a checkpoint, without optimizer state, for evaluation and surgery.

    Args:
      out: the run's folder.
      target: the tree of shapes (`core.spec.abstract(spec)`), with shardings or for one device.
      step: the newest by default.

    Raises:
      CheckpointError: no such checkpoint, or an unreadable one.
      ResumeError: it holds other arrays than `target`.
    """
    import orbax.checkpoint as ocp

    folder = Path(out).resolve() / FOLDER
    trainable, fixed = trees.split(target)
    wanted = {"trainable/" + path: shape_of(x) for path, x in trees.leaves_with_path(trainable)}
    wanted |= {"fixed/" + path: shape_of(x) for path, x in trees.leaves_with_path(fixed)}
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        steps = sorted(manager.all_steps())
        if not steps or (step is not None and step not in steps):
            raise CheckpointError(f"no checkpoint {'' if step is None else step} in {folder}; there are {steps}")
        step = steps[-1] if step is None else step
        try:
            meta = read_meta(folder / str(step))
            stored = {path: kind for path, kind in meta["arrays"].items() if path.startswith(PARAMS)}
            _check_arrays(folder / str(step), stored, _described(wanted))
            parts = ocp.args.Composite(params=ocp.args.StandardRestore(_parts(wanted)[0]))
            params = manager.restore(step, args=parts)["params"] | _empty(wanted)
            _compare(params, meta["fingerprints"])
        except ResumeError:
            raise
        except Exception as error:
            raise CheckpointError(f"checkpoint {folder / str(step)} is not usable: {_reason(error)}") from error
    names = [next(p + path for p in PARAMS if p + path in params) for path, _ in trees.leaves_with_path(target)]
    return jax.tree.unflatten(jax.tree.structure(target), [params[name] for name in names])


def read_meta(folder: Path) -> dict[str, Any]:
    """What a checkpoint (OUT/checkpoints/STEP) says of itself: config, data, ledger, evaluation, arrays, fingerprints.

    Raises:
      CheckpointError: it is missing, cannot be read, or is not what was saved.
    """
    path = folder / "meta" / "metadata"
    try:
        meta = json.loads(path.read_text())
        content, seal = meta["content"], meta["sha256"]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if _hash(content) != seal:
        raise CheckpointError(f"{path} is not what was saved")
    return content


def read_config(out: str | Path, step: int | None = None) -> Any:
    """The resolved configuration a run was started with, as `core.config.to_dict` describes it.

    `core.config.from_dict` makes the dataclasses of it again, a model's spec comes from those, and with its shapes
    `restore_params_only` gives the parameters: nothing about the run needs to be known.

    Args:
      step: of this checkpoint; by default of the newest that can be read, or of config.json where there is none.

    Raises:
      CheckpointError: there is neither.
    """
    folder = Path(out) / FOLDER
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    wrong: list[str] = []
    for found in sorted(steps, reverse=True) if step is None else [step]:
        try:
            return read_meta(folder / str(found))["config"]
        except CheckpointError as error:
            wrong.append(str(error))
    try:
        if step is None:
            return json.loads((Path(out) / "config.json").read_text())["config"]
    except (OSError, ValueError, KeyError) as error:
        wrong.append(str(error))
    raise CheckpointError(f"no configuration in {out}: {'; '.join(wrong)}; checkpoints are {sorted(steps)}")


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array or of a shape; on the first device where no sharding is given."""
    sharding = getattr(x, "sharding", None) or SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def fingerprints(tree: PyTree) -> dict[str, int]:
    """path -> fingerprint: the sum over 32-bit (or narrower) words of word * (2 index + 1), modulo 2^32.

    Sums modulo 2^32 do not depend on the order, so neither does this on the sharding. The odd factor makes
    any change of a single word visible.
    """
    arrays = dict(trees.leaves_with_path(tree))
    found = jax.device_get(_fingerprints(list(arrays.values())))
    return {path: int(value) for path, value in zip(arrays, found, strict=True)}


@jax.jit
def _fingerprints(arrays: list[Array]) -> list[UInt32[Array, ""]]:
    return [_fingerprint(x) for x in arrays]


def _fingerprint(x: Array) -> UInt32[Array, ""]:
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    word = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    index, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)


def _parts(arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is stored as parameters and as optimizer. Arrays without entries, such as factors of rank 0, are not stored."""
    entries = {path: x for path, x in arrays.items() if x.size}
    params = {path: x for path, x in entries.items() if path.startswith(PARAMS)}
    return params, {path: x for path, x in entries.items() if path not in params}


def _empty(wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """Those without entries."""
    return {path: jnp.zeros(x.shape, x.dtype, device=x.sharding) for path, x in wanted.items() if not x.size}


def _described(arrays: dict[str, Any]) -> dict[str, str]:
    """path -> for example "float32[16,8]"."""
    return {path: f"{jnp.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]" for path, x in arrays.items()}


def _check_arrays(folder: Path, stored: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises ResumeError where a checkpoint holds other arrays than are wanted."""
    lines = [
        f"{path} is {stored.get(path, 'absent')} there and {wanted.get(path, 'absent')} here"
        for path in sorted(set(stored) | set(wanted))
        if stored.get(path) != wanted.get(path)
    ]
    if lines:
        more = f", and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise ResumeError(f"checkpoint {folder} holds other arrays: {'; '.join(lines[:4])}{more}")


def _compare(arrays: dict[str, Array], stored: dict[str, int]) -> None:
    """Raises where an array is not what was saved."""
    wrong = [path for path, value in fingerprints(arrays).items() if value != stored[path]]
    if wrong:
        raise CheckpointError(f"the bytes of {', '.join(wrong[:4])} are not those that were saved")


def _sealed(meta: dict[str, Any]) -> dict[str, Any]:
    """The meta data with its own hash."""
    meta = json.loads(json.dumps(meta))  # as it will be read: lists for tuples, text for keys
    return {"content": meta, "sha256": _hash(meta)}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _reason(error: BaseException) -> str:
    """What an error was caused by in the first place, in one line of at most 300 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return (text if isinstance(error, CheckpointError) else f"{type(error).__name__}: {text}")[:300]


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """What fails inside on one process fails on all, so that all of them do the same next."""
    problem: Exception | None = None
    try:
        yield
    except ResumeError:
        raise
    except Exception as error:
        problem = error
    if jax.process_count() > 1:
        failed = np.flatnonzero(multihost_utils.process_allgather(np.array(problem is not None)))
        if len(failed) and problem is None:
            problem = CheckpointError(f"process {failed[0]} cannot read its part")
    if problem is not None:
        raise problem


def _agreed(steps: list[int]) -> set[int]:
    """Process 0's list, on all processes."""
    if jax.process_count() == 1:
        return set(steps)
    newest = np.full(64, -1)
    newest[: len(steps[-64:])] = steps[-64:]
    return {int(step) for step in multihost_utils.broadcast_one_to_all(newest) if step >= 0}
