"""TensorFlow Datasets and Hugging Face datasets by name; their libraries are imported on opening one."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxpt.core.names import nearest_error
from jaxpt.data.corpora.files import Fields, decode, read_rows, row_document
from jaxpt.data.documents import DataError, Document

TFDS_VERSION = re.compile(r"\d+\.\d+\.\d+|\*\.\*\.\*")
ROW_FILES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")


def tensorflow_datasets(spec: str) -> Iterator[Document]:
    """Documents of "NAME[/CONFIG][:VERSION][:split[:text_field]]", or of a folder that TFDS prepared.

    Raises:
      DataError: TFDS is not installed, cannot make the set, or the rows have no such text.
    """
    name, split, field = _parts(spec)
    tfds = _library("tensorflow_datasets", "jaxpt[data]", f"tfds:{spec}")
    try:
        if Path(name).is_dir():
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(name)
            builder.download_and_prepare()
        rows = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
    except Exception as error:  # many kinds, of the network, the name, the split and the disk
        raise _unreadable(f"tfds:{spec}", error) from error
    return _documents(f"tfds:{name}:{split}", name, rows, field)


def hugging_face(spec: str) -> Iterator[Document]:
    """Documents of "NAME_OR_DIR[:split[:text_field]]".

    A folder of parquet or jsonl files named after their split ("train-00000-of-00002.parquet",
    "data/train.jsonl"), as the Hub lays them out, is read without the library; a folder of `save_to_disk` and
    a name need it.

    Raises:
      DataError: the library is not installed, there is no such set or split, or the rows have no such text.
    """
    name, split, field = _parts(spec)
    source = f"hf:{name}:{split}"
    folder = Path(name)
    if folder.is_dir():
        found = _split_files(folder, split)
        if found:
            return _documents(source, name, (row for path in found for row in read_rows(path)), field)
        if not any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            raise DataError(f"{name} has no parquet or jsonl file of split {split!r}, nor the files of save_to_disk")
    datasets = _library("datasets", "datasets", f"hf:{spec}")
    try:
        rows = (
            _saved(datasets.load_from_disk(name), name, split)
            if folder.is_dir()
            else (datasets.load_dataset(name, split=split, streaming=True))
        )
    except DataError:
        raise
    except Exception as error:  # many kinds, of the network, the name, the split and the disk
        raise _unreadable(f"hf:{spec}", error) from error
    return _documents(source, name, rows, field)


def _saved(saved: Any, name: str, split: str) -> Any:
    """The rows of a split of what `save_to_disk` wrote; a set saved without a split counts as "train"."""
    splits = saved if isinstance(saved, Mapping) else {str(saved.split or "train"): saved}
    if split not in splits:
        raise DataError(f"{name}: {nearest_error('split', split, splits)}")
    return splits[split]


def _unreadable(wanted: str, error: Exception) -> DataError:
    said = (str(error).strip().splitlines() or [""])[0][:300]
    return DataError(f"{wanted} cannot be opened: {type(error).__name__}: {said}")


def _parts(spec: str) -> tuple[str, str, str]:
    """(name, split, text field) of a spec; "train" and "text" where left out."""
    name, *rest = spec.split(":")
    if rest and TFDS_VERSION.fullmatch(rest[0]):
        name = f"{name}:{rest.pop(0)}"
    if len(rest) > 2:
        raise ValueError(f"{spec!r} has too many colons; expected NAME[:split[:text_field]]")
    split, field = (*rest, "", "")[:2]
    return name, split or "train", field or "text"


def _library(module: str, requirement: str, wanted: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{wanted} needs {module} ({error}); install it with: pip install '{requirement}'") from error


def _split_files(folder: Path, split: str) -> list[Path]:
    """Row files whose name, or whose folder's name, is the split's, alone or before a "-"."""

    def belongs(part: str) -> bool:
        return re.match(rf"{re.escape(split)}($|[-.])", part) is not None

    paths = (p for p in folder.rglob("*") if p.is_file() and p.name.lower().endswith(ROW_FILES))
    return sorted(p for p in paths if any(belongs(part) for part in p.relative_to(folder).parts))


def _documents(source: str, name: str, rows: Iterable[Mapping[str, Any]], field: str) -> Iterator[Document]:
    fields = Fields(text=field, default_domain=name.rstrip("/").rsplit("/", 1)[-1].partition(":")[0])
    number = -1
    for number, row in enumerate(rows):
        plain = {k: decode(v, f"{source} row {number + 1}") if isinstance(v, bytes) else v for k, v in row.items()}
        document = row_document(plain, number, source, fields)
        if document is not None:
            yield document
    if number < 0:
        raise DataError(f"{source} holds no documents")
