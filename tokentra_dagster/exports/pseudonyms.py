"""Pseudonyms of users: HMAC-SHA256 with a key that only the sender has; the same user has the same one in every export with it."""

from __future__ import annotations

import hmac
from typing import Any

import pyarrow as pa

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.secret_references import resolve_secret

SHORTEST_KEY = 16


def read_key(reference: str) -> bytes:
    """The key that `env:NAME` or `file:PATH` points at. Raises `PermanentError` naming the reference, never the key."""
    key = resolve_secret(reference)
    if len(key) < SHORTEST_KEY:
        raise PermanentError(
            f"The key of pseudonyms at {reference} is shorter than {SHORTEST_KEY} characters; put a long random one there."
        )
    return key.encode()


def pseudonym(key: bytes, user_id: str) -> str:
    """64 hexadecimal digits."""
    return hmac.new(key, user_id.encode(), "sha256").hexdigest()


def order_salt(key: bytes) -> str:
    """What users are sorted by together with their identifier: in alphabetical order a list of users would tell who is who."""
    return pseudonym(key, "tokentra: order of users in an export")


def pseudonymised(users: Any, key: bytes) -> Any:
    """A dictionary array of user identifiers with pseudonyms in their place; unknown users stay unknown."""
    values = [None if value is None else pseudonym(key, value) for value in users.dictionary.to_pylist()]
    return pa.DictionaryArray.from_arrays(users.indices, pa.array(values, pa.string()))
