"""Where a due export's file lies between being written and being delivered, and how long. A staged file is delivered again as it is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from tokentra_dagster.exports.destinations.base import sha256_of
from tokentra_dagster.exports.manifest import manifest_path

FOLDER = "export-staging"


@dataclass(frozen=True, slots=True)
class StagedFile:
    """What one file must be, as it was written down before it was delivered."""

    name: str
    size_bytes: int
    sha256: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def staging_folder(home: Path, run: UUID, attempt: int) -> Path:
    """Of one attempt: two that should ever write at the same time do not write into one file."""
    return home / FOLDER / str(run) / str(attempt)


def describe(files: Iterable[Path]) -> tuple[StagedFile, ...]:
    return tuple(StagedFile(path.name, path.stat().st_size, sha256_of(path)) for path in files)


def written_files(export: Path, sidecar: str) -> list[Path]:
    """The export, what belongs to it, and its manifest last."""
    beside = export.with_name(export.name + sidecar)
    return [export, *([beside] if beside.is_file() else []), manifest_path(export)]


def is_whole(folder: Path, files: Sequence[StagedFile]) -> bool:
    """Whether every file is there as it was written down."""
    for file in files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size_bytes or sha256_of(path) != file.sha256:
            return False
    return bool(files)


def other_attempts(folder: Path) -> list[Path]:
    """What other attempts of the same run left behind."""
    if not folder.parent.is_dir():
        return []
    return [path for path in folder.parent.iterdir() if path != folder and path.is_dir()]


def remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def touched(folder: Path) -> float:
    """When an attempt last began or went in a run's folder, in seconds of the epoch; now, where another process took it away."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def staged_runs(home: Path) -> dict[UUID, Path]:
    """Everything that is staged here, by the id of its run."""
    found: dict[UUID, Path] = {}
    folder = home / FOLDER
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            found[UUID(path.name)] = path
        except ValueError:
            continue
    return found
