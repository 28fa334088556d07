"""Every error a person can meet. Each says what was wrong, with the value, what is allowed, and what to do next."""

from __future__ import annotations


class TokenTraError(Exception):
    """Base: its message is one sentence fit for the command line."""


class SettingsError(TokenTraError):
    """The environment says something that cannot be used."""


class UsageError(TokenTraError):
    """A person asked for something that does not exist or cannot be."""


class PermanentError(TokenTraError):
    """Retrying cannot help: a revoked key, a missing scope, a refused parameter. Says what to fix."""


class TransientError(TokenTraError):
    """May pass by itself: 429, 5xx, time-outs. Retried with back-off, bounded; `retry_after` in seconds when the provider said."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
