"""Whose a model is, where a gateway's request names no provider; and the lengths of prompt at which the providers' prices step."""

from __future__ import annotations

from fnmatch import fnmatchcase

from tokentra_dagster.providers.base import ConnectionConfig
from tokentra_dagster.providers.options import Options

MODELS = {
    "openai": ("gpt-*", "o1*", "o3*", "o4*", "chatgpt-*", "text-embedding-*", "openai/*"),
    "anthropic": ("claude-*", "anthropic/*"),
    "google": ("gemini-*", "google/*", "vertex_ai/*"),
}
"""Models of a provider, unless the option `models` says so; for azure and aws it has to."""
LENGTHS, LONGEST = (128_000, 200_000, 272_000), 10_000_000
"""As `request_groups.prompt_length` takes them: any provider's steps."""


class OwnModels:
    """Patterns of the models that are the connection's provider's, in any case. False: none are known."""

    def __init__(self, config: ConnectionConfig, options: Options) -> None:
        self._patterns = tuple(pattern.lower() for pattern in options.texts("models") or MODELS.get(config.provider, ()))

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def __contains__(self, model: str) -> bool:
        return any(fnmatchcase(model.lower(), pattern) for pattern in self._patterns)
