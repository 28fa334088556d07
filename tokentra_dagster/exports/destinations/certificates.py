"""Whose certificates are trusted: the system's authorities, or only those of a file."""

from __future__ import annotations

import ssl
from pathlib import Path

from tokentra_dagster.errors import PermanentError


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """A context that checks certificate and host name. Raises `PermanentError` when the file holds no certificate."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise PermanentError(
            f"The certificates in {ca_file} cannot be read ({error.strerror or error}); give a PEM file."
        ) from None
