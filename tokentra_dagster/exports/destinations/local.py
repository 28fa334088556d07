"""A folder of this machine, or one mounted into it. A reader sees a file whole or not at all, and the manifest last."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.exports.destinations.base import Delivered, Delivery, sha256_of
from tokentra_dagster.exports.destinations.fields import Fields

KNOWN = ("folder",)
_PIECE = 1 << 20
_LEFT_BEHIND_AFTER = 24 * 3600
"""Seconds after which a half-written file can belong to no living delivery."""


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """`folder` is absolute. Files keep their names; delivering again replaces them."""

    folder: Path

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> LocalFolder:
        fields = Fields("download", given, KNOWN)
        folder = Path(fields.text("folder", example="/srv/exports")).expanduser()
        if not folder.is_absolute():
            raise fields.wrong("folder", f"is {str(folder)!r}; it must be an absolute path, e.g. /srv/exports")
        return cls(folder)

    def needs_link(self, delivery: Delivery) -> bool:
        return False

    def deliver(self, delivery: Delivery) -> Delivered:
        delivery.check_files()
        target = self.folder / delivery.folder
        try:
            target.mkdir(parents=True, exist_ok=True)
            _forget_old_manifest(delivery, target)
            for path in delivery.all_files:
                _place(path, target)
        except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
            raise PermanentError(
                f"The folder {target} cannot be written ({error.strerror}); check the path and its rights."
            ) from None
        except OSError as error:
            raise TransientError(
                f"Writing to {target} failed ({error.strerror}); free or mend the disk, it is tried again."
            ) from None
        return Delivered(str(target / delivery.files[0].name), delivery.message_id)


def _forget_old_manifest(delivery: Delivery, target: Path) -> None:
    # While the files of a restated export replace the old ones, no manifest must vouch for the mixture.
    manifest = target / delivery.manifest.name
    if manifest.is_file() and sha256_of(manifest) != sha256_of(delivery.manifest):
        manifest.unlink()
        _sync_folder(target)


def _place(path: Path, target: Path) -> None:
    final = target / path.name
    for old in target.glob(f".{_escape(path.name)}.*.part"):
        if time.time() - old.stat().st_mtime > _LEFT_BEHIND_AFTER:
            old.unlink(missing_ok=True)
    beside = target / f".{path.name}.{secrets.token_hex(8)}.part"
    try:
        with path.open("rb") as source, beside.open("xb") as file:
            _copy(source, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(final)
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(target)


def _copy(source: BinaryIO, file: BinaryIO) -> None:
    while piece := source.read(_PIECE):
        file.write(piece)


def _sync_folder(folder: Path) -> None:
    """Make the renames last over a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
