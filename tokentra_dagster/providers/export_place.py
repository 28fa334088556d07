"""Where a gateway's exported files lie: a folder of this machine, or a bucket and prefix in S3. Both are listed in the order of names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers import aws_client
from tokentra_dagster.providers.aws_client import Aws
from tokentra_dagster.providers.aws_s3 import Location, Object
from tokentra_dagster.providers.base import ConnectionConfig
from tokentra_dagster.providers.options import Options

OPTIONS = ("location", "bucket_region", *aws_client.OPTIONS)


class Place(Protocol):
    """`aws_s3.Location`, or a folder that answers the same."""

    @property
    def url(self) -> str: ...

    def folders(self, under: str) -> list[str]: ...

    def objects(self, under: str, after: str = "") -> Iterator[Object]: ...

    def opened(self, key: str) -> AbstractContextManager[IO[bytes]]: ...


def place_of(config: ConnectionConfig, options: Options) -> Place:
    """The option `location`. Asks nothing yet; raises `PermanentError` where it is missing or no place."""
    text = options.text("location")
    if text is None:
        raise PermanentError(
            f"{config.asked}: the option location is missing; give it the folder of the exported files or their place in S3, "
            "e.g. s3://acme-exports/gateway"
        )
    if text.startswith("s3:"):
        return Location.of(Aws.of(config, options), options, "location")
    if "://" in text:
        raise options.wrong("location", text, "it must be a folder, or a place in S3 like s3://acme-exports/gateway")
    return Folder(config.asked, Path(text).expanduser())


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder. Files and folders whose name begins with a dot are the tools' own and are not listed."""

    name: str
    path: Path

    @property
    def url(self) -> str:
        return str(self.path)

    def folders(self, under: str) -> list[str]:
        """The names of the folders directly below `under`, in order. Raises `PermanentError` where there is no such folder."""
        with self._readable():
            return sorted(one.name for one in self._existing(under).iterdir() if one.is_dir() and not one.name.startswith("."))

    def objects(self, under: str, after: str = "") -> Iterator[Object]:
        """Files below `under` in the order of their names, from `after` on. Raises as `folders`."""
        with self._readable():
            for key in sorted(self._keys(self._existing(under))):
                if key > after:
                    state = (self.path / key).stat()
                    yield Object(key, state.st_size, datetime.fromtimestamp(state.st_mtime, UTC))

    @contextmanager
    def opened(self, key: str) -> Iterator[IO[bytes]]:
        with self._readable(), (self.path / key).open("rb") as file:
            yield file

    def _existing(self, under: str) -> Path:
        if not self.path.is_dir():
            raise PermanentError(f"{self.name}: there is no folder {self.path}; correct the option location")
        return self.path / under

    def _keys(self, folder: Path) -> Iterator[str]:
        if not folder.is_dir():
            return
        # A folder that cannot be listed is an error: passed over, it would look like one without files.
        for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (Path(root, name).relative_to(self.path).as_posix() for name in files if not name.startswith("."))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
            raise PermanentError(
                f"{self.name}: {error.filename} cannot be read ({error.strerror}); allow it to the user that syncs"
            ) from None


def _raise(error: OSError) -> None:
    raise error
