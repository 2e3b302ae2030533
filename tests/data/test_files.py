"""A user's own files: every kind, every field, and what is wrong with a file said by name and place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpt.data.corpora import open_corpus
from jaxpt.data.corpora.files import Fields, files
from jaxpt.data.documents import DataError

ROWS = [
    {"text": "first ünï 🙂\nline", "id": "a", "domain": "news", "title": "T", "licence": "MIT"},
    {"text": "second", "id": "b", "extra": [1, 2]},
]


def lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines(rows)))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(lines(rows)))
    else:
        path.write_bytes(lines(rows))
    return path


KINDS = pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
PACKED = pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.parquet"])


@KINDS
def test_rows(tmp_path, name):
    path = write(tmp_path / name, [r | {k: r.get(k) for k in ("domain", "title", "licence") if k in r} for r in ROWS])
    first, second = open_corpus(f"files:{path}")
    assert (first.text, first.domain, first.title, first.licence) == (ROWS[0]["text"], "news", "T", "MIT")
    assert first.id == f"files:{path}:a"
    assert second.text == "second"
    if name != "x.parquet":  # a parquet column is there for every row
        assert (second.domain, second.title, second.licence) == ("files", "", "unknown")


@KINDS
def test_configured_fields(tmp_path, name):
    rows = [{"body": "hello", "key": 7, "section": "sport", "head": "H", "terms": "CC0-1.0"}]
    fields = Fields(text="body", id="key", domain="section", title="head", licence="terms")
    (document,) = files(str(write(tmp_path / name, rows)), fields)
    assert document.text == "hello" and document.id.endswith(":7")
    assert (document.domain, document.title, document.licence) == ("sport", "H", "CC0-1.0")
    with pytest.raises(DataError, match=r"x\..* row 1: the text field 'text' is not there.*'body'"):
        list(files(str(tmp_path)))


def test_text_files_in_order_by_folder_and_glob(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.md", "sub/c.py", "sub/d.bin", ".hidden"):
        (tmp_path / name).write_text(f"text of {name}\r\n", encoding="utf-8", newline="")
    found = list(open_corpus(f"files:{tmp_path}"))
    assert [d.text for d in found] == [f"text of {n}\r\n" for n in ("a.md", "b.txt", "sub/c.py")]
    assert [d.title for d in found] == ["a", "b", "c"]
    assert len({d.id for d in found}) == 3
    assert [d.title for d in open_corpus(f"files:{tmp_path}/**/*.py")] == ["c"]


def test_rows_without_text(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"text": ""}, {"text": "kept"}, {"text": "  "}])
    assert [d.text for d in files(str(path))] == ["kept"]
    with pytest.raises(DataError, match=r"x.jsonl row 1: the text field 'text' is int, not a string"):
        list(files(str(write(path, [{"text": 3}]))))


@KINDS
def test_no_documents(tmp_path, name):
    for rows in ([], [{"text": ""}]):
        table = rows or [{"text": None}]
        path = write(tmp_path / name, rows) if rows or name != "x.parquet" else tmp_path / name
        if not rows and name == "x.parquet":
            pq.write_table(pa.Table.from_pylist(table).slice(0, 0), path)
        with pytest.raises(DataError, match=f"{name} holds no documents"):
            list(files(str(path)))


def test_missing_and_empty(tmp_path):
    for pattern in ("absent.txt", "*.txt", "absent/**"):
        with pytest.raises(DataError, match="no data file matches"):
            list(open_corpus(f"files:{tmp_path}/{pattern}"))
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"of 1 paths found.*\.jsonl\.zst"):
        list(open_corpus(f"files:{tmp_path}"))
    (tmp_path / "x.txt").write_text("\n")
    with pytest.raises(DataError, match=r"x.txt is empty"):
        list(open_corpus(f"files:{tmp_path}"))


@PACKED
@pytest.mark.parametrize("part", [0.3, 0.7, 0.97])
def test_truncated(tmp_path, name, part):
    path = write(tmp_path / name, [{"text": f"row {i} " * 50} for i in range(500)])
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * part)])
    with pytest.raises(DataError, match=f"{name} is truncated"):
        list(files(str(path)))


@PACKED
def test_not_of_its_kind(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is no archive at all")
    with pytest.raises(DataError, match=f"{name} is truncated or corrupt"):
        list(files(str(tmp_path)))


def test_several_zstd_frames(tmp_path):
    parts = [zstandard.compress(lines([row])) for row in ROWS]
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(b"".join(parts))
    assert [d.text for d in files(str(path))] == [r["text"] for r in ROWS]
    path.write_bytes(parts[0] + parts[1][:-3])
    with pytest.raises(DataError, match="truncated"):
        list(files(str(path)))


def test_bad_encoding_names_the_place(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"good \xff bad")
    with pytest.raises(DataError, match=r"x.txt is not UTF-8: byte 5 \(ff 20 62 61\)"):
        list(files(str(tmp_path / "x.txt")))
    (tmp_path / "y.jsonl").write_bytes(lines(ROWS) + b'{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"y.jsonl line 3 is not UTF-8: byte 13"):
        list(files(str(tmp_path / "y.jsonl")))


@pytest.mark.parametrize(("line", "message"), [(b"{not json}", "line 3 is not JSON"), (b"[1]", "line 3 is a list")])
def test_bad_lines(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_bytes(lines(ROWS) + line + b"\n")
    with pytest.raises(DataError, match=f"x.jsonl {message}"):
        list(files(str(tmp_path)))


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=8))
@KINDS
def test_any_text_comes_back(tmp_path_factory, name, texts):
    path = write(tmp_path_factory.mktemp("any") / name, [{"text": t} for t in texts])
    assert [d.text for d in files(str(path))] == texts


def test_hugging_face_folder_by_split_and_field(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000-of-00002.parquet", [{"body": "one"}])
    write(tmp_path / "data" / "train-00001-of-00002.parquet", [{"body": "two"}])
    write(tmp_path / "data" / "trainer.jsonl", [{"body": "no split of this name"}])
    (tmp_path / "test").mkdir()
    write(tmp_path / "test" / "part.jsonl.gz", [{"body": "three"}])
    documents = list(open_corpus(f"hf:{tmp_path}:train:body"))
    assert [d.text for d in documents] == ["one", "two"]
    assert len({d.id for d in documents}) == 2
    assert [d.domain for d in documents] == [tmp_path.name] * 2
    assert [d.text for d in open_corpus(f"hf:{tmp_path}:test:body")] == ["three"]
    with pytest.raises(DataError, match="text field 'text' is not there"):
        list(open_corpus(f"hf:{tmp_path}"))
    with pytest.raises(DataError, match="no parquet or jsonl file of split 'dev'"):
        open_corpus(f"hf:{tmp_path}:dev")


def test_hugging_face_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    make = datasets.Dataset.from_dict
    make({"text": ["a é", "b"]}).save_to_disk(tmp_path / "one")
    splits = {"train": make({"text": ["t"]}), "test": make({"body": ["u"]})}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert [d.text for d in open_corpus(f"hf:{tmp_path}/one")] == ["a é", "b"]
    assert [d.text for d in open_corpus(f"hf:{tmp_path}/two:test:body")] == ["u"]
    for missing in ("one:test", "two:tests"):
        with pytest.raises(DataError, match="unknown split 'test"):
            open_corpus(f"hf:{tmp_path}/{missing}")


def test_tensorflow_datasets_folder(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources")  # TFDS needs it to write, and does not ask for it
    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "body": tfds.features.Text()})
    rows = [(i, {"text": f"é {i}", "body": f"body {i}"}) for i in range(3)]
    tfds.dataset_builders.store_as_tfds_dataset(
        "small",
        "1.0.0",
        features,
        {"train": rows, "test": rows[:1]},
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    folder = tmp_path / "small" / "1.0.0"
    assert [d.text for d in open_corpus(f"tfds:{folder}")] == ["é 0", "é 1", "é 2"]
    assert [d.text for d in open_corpus(f"tfds:{folder}:test:body")] == ["body 0"]
    with pytest.raises(DataError, match="tfds:.*:dev cannot be opened"):
        open_corpus(f"tfds:{folder}:dev")
    with pytest.raises(DataError, match="tfds:no_such_set cannot be opened: DatasetNotFoundError"):
        open_corpus("tfds:no_such_set")


def test_missing_libraries_say_what_to_install(monkeypatch):
    import importlib.util

    for module, name, extra in (
        ("datasets", "hf:x/y", "datasets"),
        ("tensorflow_datasets", "tfds:x", r"jaxpt\[data\]"),
    ):
        if importlib.util.find_spec(module) is not None:
            monkeypatch.setitem(__import__("sys").modules, module, None)  # as if it were not installed
        with pytest.raises(DataError, match=f"{name} needs {module}.*pip install '{extra}'"):
            list(open_corpus(name))


def test_specs_with_versions_and_errors():
    from jaxpt.data.corpora.hub import _parts

    assert _parts("c4/en:3.0.1:validation:body") == ("c4/en:3.0.1", "validation", "body")
    assert _parts("c4/en:3.0.1") == ("c4/en:3.0.1", "train", "text")
    assert _parts("c4/en:test") == ("c4/en", "test", "text")
    with pytest.raises(ValueError, match="too many colons"):
        _parts("a:b:c:d")
    with pytest.raises(ValueError, match="nothing after the colon"):
        open_corpus("files:")
