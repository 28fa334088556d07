"""Where a secret is (`env:NAME`, `file:PATH`), never the secret itself: tables, logs and errors hold references only."""

from __future__ import annotations

import os
from pathlib import Path

from tokentra_dagster.errors import PermanentError


def is_reference(text: str) -> bool:
    """Whether this names a place: `env:` or `file:` and something behind it."""
    kind, _, where = text.partition(":")
    return kind in ("env", "file") and bool(where.strip())


def resolve_secret(reference: str) -> str:
    """The secret that `env:NAME` or `file:PATH` points at, without white space around it.

    Raises `PermanentError` naming the reference. What is no reference is not repeated: it may be the secret itself.
    """
    kind, _, where = reference.partition(":")
    if not is_reference(reference):
        raise PermanentError("A secret must be given as env:NAME or file:PATH; what is there is neither and is not shown here.")
    if kind == "env":
        value = os.environ.get(where, "")
        hint = f"the environment variable {where} is not set"
    else:
        path = Path(where).expanduser()
        try:
            value = path.read_text() if path.is_file() else ""
            hint = f"the file {where} is not there or is empty"
        except (OSError, UnicodeDecodeError) as error:
            value, hint = "", f"the file {where} cannot be read ({type(error).__name__})"
    if not value.strip():
        raise PermanentError(f"The secret {reference} cannot be read: {hint} for this process.")
    return value.strip()
