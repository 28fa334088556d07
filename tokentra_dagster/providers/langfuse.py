"""Langfuse: the generations of one project, by its Observations API v2 (providers.md 6.3).

A generation names its model and not its provider, so a connection says which models are its provider's (option `models`).
`usageDetails` has free-form keys, `total` among them. Whether `input` holds what the provider's cache served is told by the sum: where
input and output make the total it does, where all parts make it, it does not; where neither holds, the item is rejected and the
option `input_includes_cache` decides. Prompts and answers (`io`) are never asked for.

https://langfuse.com/docs/api-and-data-platform/features/observations-api
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.http_json import JsonApi
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import BadItem, instant, optional_count, optional_text
from tokentra_dagster.providers.request_groups import Group, Sums, record
from tokentra_dagster.records import GRANULARITY_SECONDS, EntityName, Item, RejectedItem, token_problem

OPTIONS = ("models", "input_includes_cache")
PATH = "/api/public/v2/observations"
CLOUD = "https://cloud.langfuse.com"
PAGE = 1000
FIELDS = "core,basic,model,usage,metrics"
MODELS = {
    "openai": ("gpt-*", "o1*", "o3*", "o4*", "chatgpt-*", "text-embedding-*", "openai/*"),
    "anthropic": ("claude-*", "anthropic/*"),
    "google": ("gemini-*", "google/*", "vertex_ai/*"),
}
"""Models of a provider, unless the option says so; for azure and aws it has to."""
LENGTHS = ((128_000, "0-128k"), (200_000, "128k-200k"), (272_000, "200k-272k"))
LONGEST = "272k-10M"
_READ = ("input_cached_tokens", "cache_read_input_tokens", "input_cache_read")
_WRITTEN = ("cache_creation_input_tokens", "input_cache_creation", "input_cache_creation_tokens")
_KEY = "the project's keys as PUBLIC_KEY:SECRET_KEY (pk-lf-...:sk-lf-...)"


class LangfuseSource:
    """One project, for one provider."""

    def __init__(self, config: ConnectionConfig) -> None:
        options = Options(config, OPTIONS)
        self._models = tuple(pattern.lower() for pattern in options.texts("models") or MODELS.get(config.provider, ()))
        if not self._models:
            raise PermanentError(
                f"langfuse: the option models is missing; say which models are {config.provider}'s, e.g. models=my-gpt-*,prod-*"
            )
        self._includes_cache = options.one_of("input_includes_cache", ("auto", "yes", "no"), "auto")
        token = base64.b64encode(config.api_key.strip().encode()).decode()
        self._api = JsonApi(
            "langfuse", config.base_url or CLOUD, _KEY, {"Authorization": f"Basic {token}", "Accept": "application/json"},
            (config.api_key, config.api_key.partition(":")[2], token), options.timeout_seconds, options.max_retries,
        )  # fmt: skip
        self._others: set[str] = set()

    def usage(self, window: Window) -> Iterator[Item]:
        """Records of the generations that began in the window."""
        width = GRANULARITY_SECONDS[window.granularity]
        groups: dict[Group, Sums] = {}
        seen: set[bytes] = set()
        self._others = set()
        for item in self._generations(window):
            at: datetime | None = None
            try:
                at = instant(item, "startTime")
                identity = hashlib.blake2b(str(item.get("id")).encode(), digest_size=16).digest()
                if not window.start <= at < window.end or identity in seen:
                    continue
                seen.add(identity)
                model = optional_text(item, "model") or optional_text(item, "providedModelName")
                if not self._is_ours(model):
                    continue
                self._count(groups, item, str(model), datetime.fromtimestamp(at.timestamp() // width * width, UTC))
            except BadItem as bad:
                kept = {name: item.get(name) for name in ("id", "traceId", "startTime", "model", "usageDetails")}
                yield RejectedItem(reason=f"langfuse: {bad}", payload=kept, bucket_start=at or window.start)
        yield from (record(group, sums, window.granularity) for group, sums in groups.items())

    def costs(self, window: Window) -> Iterator[Item]:
        """Nothing: its costs are estimates."""
        yield from ()

    def names(self) -> Iterator[EntityName]:
        """Nothing: an observation names its user itself."""
        yield from ()

    def remarks(self) -> list[str]:
        if not self._others:
            return []
        shown = ", ".join(sorted(self._others)[:10])
        return [
            f"langfuse: {len(self._others)} models were left out as another provider's ({shown}); the option models says which are read"
        ]

    def check(self) -> str:
        """One observation. Raises as `usage` does."""
        page = self._api.get(PATH, {"limit": "1", "type": "GENERATION"})
        newest = next((str(item.get("startTime")) for item in _data(page)), None)
        return f"langfuse: keys accepted; {f'newest generation {newest}' if newest else 'no generation yet'}"

    def _generations(self, window: Window) -> Iterator[Mapping[str, Any]]:
        """Page by page. A cursor that comes again would never end."""
        asked = {
            "fromStartTime": window.start.isoformat().replace("+00:00", "Z"), "toStartTime": window.end.isoformat().replace("+00:00", "Z"),
            "type": "GENERATION", "fields": FIELDS, "limit": str(PAGE),
        }  # fmt: skip
        cursors: set[str] = set()
        while True:
            page = self._api.get(PATH, asked)
            yield from _data(page)
            meta = page.get("meta")
            cursor = meta.get("cursor") if isinstance(meta, Mapping) else None
            if not cursor:
                return
            if str(cursor) in cursors:
                raise TransientError("langfuse: the same cursor came twice; nothing was used, try again later")
            cursors.add(str(cursor))
            asked["cursor"] = str(cursor)

    def _is_ours(self, model: str | None) -> bool:
        """Whether the provider is asked for this model. Raises `BadItem` for a generation that names none."""
        if model is None:
            raise BadItem("the generation names no model")
        if any(fnmatchcase(model.lower(), pattern) for pattern in self._models):
            return True
        self._others.add(model)
        return False

    def _count(self, groups: dict[Group, Sums], item: Mapping[str, Any], model: str, start: datetime) -> None:
        tokens = self._tokens(item)
        latency, failed = item.get("latency"), item.get("level") == "ERROR"
        took = round(Decimal(str(latency)) * 1000) if isinstance(latency, int | float | Decimal) and latency >= 0 else None
        group = Group(
            bucket_start=start,
            model=model,
            request_type="embedding" if "embedding" in model else "chat",
            provider_project_id=optional_text(item, "projectId"),
            user_id=optional_text(item, "userId"),
            api_key_id=None,
            service_tier=None,
            context_window=next((name for most, name in LENGTHS if (tokens[0] or 0) <= most), LONGEST),
            names=tuple((name, value) for name in ("environment",) if (value := optional_text(item, name))),
            metadata=(),
            knows_latency=took is not None,
            knows_tokens=tokens[0] is not None,
        )
        groups.setdefault(group, Sums()).add(*tokens, None, took, "error" if failed else None)

    def _tokens(self, item: Mapping[str, Any]) -> tuple[int | None, int | None, int | None, int | None]:
        """Sent with the cache's part, received, read from and written to the cache. All None where nothing is told."""
        details = item.get("usageDetails")
        if not isinstance(details, Mapping) or not details:
            return None, None, None, None
        sent, received = optional_count(details, "input") or 0, optional_count(details, "output") or 0
        read, written = (
            next((count for name in names if (count := optional_count(details, name)) is not None), None)
            for names in (_READ, _WRITTEN)
        )
        inside = (read or 0) + (written or 0)
        if inside and not self._holds_cache(details, sent, received, inside):
            sent += inside
        if problem := token_problem(sent, received, read, written):
            raise BadItem(problem)
        return sent, received, read, written

    def _holds_cache(self, details: Mapping[str, Any], sent: int, received: int, inside: int) -> bool:
        if self._includes_cache != "auto":
            return self._includes_cache == "yes"
        total = optional_count(details, "total")
        if total == sent + received:
            return True
        further = sum(optional_count(details, name) or 0 for name in details if name not in ("input", "output", "total"))
        if total in (sent + received + inside, sent + received + further):
            return False
        raise BadItem(
            "usageDetails do not say whether input holds what the cache served (total is none of the sums); set the option input_includes_cache"
        )


def _data(page: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    data = page.get("data")
    if not isinstance(data, list) or not all(isinstance(item, Mapping) for item in data):
        raise TransientError("langfuse: an answer has no list of observations; nothing was used, try again later")
    return data
