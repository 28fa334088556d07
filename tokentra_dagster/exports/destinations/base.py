"""What is delivered, what came of it, and the retries that every destination shares (specification section 12, delivery).

A destination gets finished files and takes them somewhere else, whole: the manifest goes last, so that a receiver who sees it
knows that everything before it is there. It raises `PermanentError` where trying again cannot help and `TransientError`
where it may, each one sentence without any secret in it.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol, TypeVar

from tokentra_dagster.errors import PermanentError, TransientError

if TYPE_CHECKING:
    from tokentra_dagster.settings import Settings

Found = TypeVar("Found")
_PIECE = 1 << 20
_MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the export holds, for subjects, events and messages. `period_start` inclusive, `period_end` exclusive, with zone."""

    organisation: str
    export_name: str
    period_start: datetime
    period_end: datetime
    rows: int
    size_bytes: int
    """Of the export itself, the first of the files."""
    sha256: str
    """Of the export itself, 64 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where the export (and its manifest) can be fetched without a login until `expires_at`."""

    url: str
    expires_at: datetime
    manifest_url: str | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One due export to be delivered. Everything that is delivered again for the same due export has the same `message_id`."""

    message_id: str
    """1 to 128 letters, digits, `_` or `-`."""
    files: tuple[Path, ...]
    """The export first, then what belongs to it (a sidecar). The manifest is not among them."""
    manifest: Path
    facts: Facts
    time: datetime
    """When the export was completed, with zone; the same for a retry."""
    folder: str = ""
    """Where inside the destination, `a/b`; empty is its root."""
    link: Link | None = None

    def __post_init__(self) -> None:
        if not _MESSAGE_ID.fullmatch(self.message_id):
            raise PermanentError(f"The message id {self.message_id!r} must be 1 to 128 letters, digits, _ or -.")
        if not self.files:
            raise PermanentError(f"The delivery {self.message_id} has no file; the export must be written first.")
        names = [path.name for path in self.all_files]
        for name in names:
            if not name or name != clean_text(name) or "/" in name or "\\" in name:
                raise PermanentError(
                    f"The file name {name!r} must not be empty or hold line breaks, control characters or slashes."
                )
        if len(set(names)) < len(names):
            raise PermanentError(f"Two files of the delivery {self.message_id} have one name ({', '.join(names)}); rename one.")
        check_folder(self.folder)
        for name, value in (("time", self.time), ("period", self.facts.period_start), ("period", self.facts.period_end)):
            if value.tzinfo is None:
                raise PermanentError(f"The {name} {value.isoformat()} of the delivery {self.message_id} must have a time zone.")

    @property
    def all_files(self) -> tuple[Path, ...]:
        """Every file in the order of delivery: the manifest last."""
        return (*self.files, self.manifest)

    @property
    def title(self) -> str:
        """One line for a subject or a headline."""
        facts = self.facts
        return clean_text(
            f"{facts.organisation}: {facts.export_name}, {facts.period_start.isoformat()} to {facts.period_end.isoformat()}"
        )

    def check_files(self) -> None:
        """Raise `PermanentError` unless every file is there and the export is the one that its facts describe."""
        for path in self.all_files:
            if not path.is_file():
                raise PermanentError(f"The file {path} of the delivery {self.message_id} is not there; run the export again.")
        export, facts = self.files[0], self.facts
        size, digest = export.stat().st_size, sha256_of(export)
        if (size, digest) != (facts.size_bytes, facts.sha256.lower()):
            raise PermanentError(
                f"The file {export} has {size} bytes with SHA-256 {digest}, its manifest was made for {facts.size_bytes} bytes "
                f"with {facts.sha256}; nothing was delivered, run the export again."
            )


@dataclass(frozen=True, slots=True)
class RefusedRecipient:
    recipient: str
    reason: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where the export is now."""

    where: str
    """A path, `s3://bucket/key`, `mailto:` addresses, or the receiver's scheme and host."""
    message_id: str
    """As the receiver sees it: the same when the same due export is delivered again."""
    link: Link | None = None
    attempts: int = 1
    refused: tuple[RefusedRecipient, ...] = ()
    """Of an e-mail: who did not get it while others did."""


class Destination(Protocol):
    def deliver(self, delivery: Delivery) -> Delivered:
        """Take the files there, whole, the manifest last. Raises `PermanentError` or `TransientError`."""
        ...

    def needs_link(self, delivery: Delivery) -> bool:
        """Whether the delivery must carry a link, because the files themselves do not travel this way."""
        ...


@dataclass(frozen=True, slots=True)
class Allowances:
    """What the operator of this process allows beyond the safe default. It never comes from a row."""

    plain_text: bool = False
    """http:// targets and SMTP without TLS."""
    private_targets: bool = False
    """Webhooks to private and loopback addresses."""

    @classmethod
    def of(cls, settings: Settings) -> Allowances:
        return cls(settings.delivery_plain_text, settings.delivery_private_targets)


SAFE = Allowances()


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and how long: pauses of 1, 2, 4, ... times `first_pause`, half of each at random, so that many do not come back at once."""

    attempts: int = 4
    first_pause: float = 1.0
    longest_pause: float = 60.0
    """In seconds. Asked by the receiver to wait longer, we give up now and say so: a later run tries again."""

    def run(self, attempt: Callable[[int], Found], sleep: Callable[[float], None] = time.sleep) -> Found:
        """What `attempt(number)` returns, number from 1; asked again after `TransientError`, whose last one is raised."""
        for number in range(1, self.attempts + 1):
            try:
                return attempt(number)
            except TransientError as failure:
                asked = failure.retry_after
                if number == self.attempts or (asked is not None and asked > self.longest_pause):
                    raise
            most = min(self.longest_pause, self.first_pause * 2 ** (number - 1))
            pause = random.uniform(most / 2, most)
            sleep(max(pause, asked or 0.0))
        raise AssertionError("unreachable: the last attempt returns or raises")


USUAL_RETRIES = Retries()


def sha256_of(path: Path) -> str:
    """Hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def clean_text(text: str) -> str:
    """On one line: control characters and line breaks become one space."""
    return " ".join(_CONTROL.sub(" ", text).split())


def check_folder(folder: str) -> None:
    """Raise `PermanentError` unless this is empty or a relative path `a/b` that stays inside."""
    parts = PurePosixPath(folder).parts
    if folder and (
        folder.startswith("/") or "\\" in folder or ".." in parts or _CONTROL.search(folder) or "/".join(parts) != folder
    ):
        raise PermanentError(f"The folder {folder!r} must be a relative path such as acme/daily, without .. or empty parts.")


def doubled(first: timedelta, longest: timedelta, attempts: int) -> timedelta:
    """The pause after so many attempts, at least 1: `first`, then twice as long each time, at most `longest`."""
    return min(first * int(2 ** min(attempts - 1, 20)), longest)
