"""Preparation with its tokenise-and-write stage as an Apache Beam pipeline: the same folder, byte for byte.

Corpora are read, split and cut in shards here; the missing shards are the elements of the pipeline, on
whatever runner the options name. On a cluster, `out` must be a folder that every worker sees. Needs the
`data` extra.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from jaxpt.data.prepare import TextTask, prepare
from jaxpt.data.shards import Shard, finished, write_shard


def prepare_beam(task: TextTask, out: Path | None = None, pipeline_options: Any = None) -> Path:
    """As `prepare`, with the missing shards written by Beam; returns the folder.

    Args:
      pipeline_options: a `PipelineOptions`, a list of its command-line flags, or None for the direct runner.

    Raises:
      ValueError: as `prepare`.
      ImportError: Apache Beam is not installed.
    """
    imported()
    return prepare(task, out, run_shards=lambda shards: write_shards(shards, pipeline_options))


def write_shards(shards: list[Shard], pipeline_options: Any = None) -> None:
    """Runs the pipeline that writes the shards which are not finished."""
    beam = imported()
    missing = [shard for shard in shards if finished(shard) is None]
    if not missing:
        return
    with beam.Pipeline(options=options_of(pipeline_options)) as pipeline:
        shards_in = pipeline | "shards" >> beam.Create(missing, reshuffle=True)
        _ = shards_in | "tokenise and write" >> beam.Map(_write)


def options_of(given: Any = None) -> Any:
    """A `PipelineOptions` as it is, or one made of command-line flags; without a runner, the direct one."""
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    options = given if isinstance(given, PipelineOptions) else PipelineOptions(given or [])
    if options.view_as(StandardOptions).runner is None:
        options.view_as(StandardOptions).runner = "FnApiRunner"  # the direct runner that needs nothing but Python
    return options


def imported() -> ModuleType:
    """Apache Beam.

    Raises:
      ImportError: it is not installed.
    """
    try:
        import apache_beam
    except ModuleNotFoundError as error:
        raise ImportError(f"the Beam runner needs the data extra ({error}): pip install 'jaxpt[data]'") from None
    return apache_beam


def _write(shard: Shard) -> str:
    write_shard(shard)
    return str(shard.path)
