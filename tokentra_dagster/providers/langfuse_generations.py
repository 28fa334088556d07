"""What a Langfuse generation says of its request, however it was read: by the API or from an exported file (providers.md 6.3).

A generation names its model and not its provider, so a connection says which models are its provider's (option `models`).

`usageDetails` has free-form keys, `total` among them, and two ways to count. Langfuse itself takes what is told apart out of the
whole: of OpenAI's usage, `input` is what is left after `input_cached_tokens`, and `output` after `output_reasoning_tokens`, so that
all parts make the total. Writers with keys of their own may leave `input` whole. The total tells: the sum of all parts, or of `input`
and `output`. Where it is neither, the generation is rejected and the option `input_includes_cache` decides.

Sources: https://langfuse.com/docs/observability/features/token-and-cost-tracking; langfuse/langfuse,
packages/shared/src/server/ingestion/types.ts (how OpenAI's usage is taken apart).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.gateway_models import LENGTHS, LONGEST, OwnModels
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import BadItem, instant, optional_count, optional_text
from tokentra_dagster.providers.request_groups import Group, Sums, prompt_length, record
from tokentra_dagster.records import Item, RejectedItem, floor, token_problem

OPTIONS = ("models", "input_includes_cache")
TYPES = ("GENERATION", "EMBEDDING")
"""Observations that are a request to a model; others (agents, chains, tools) may repeat the sum of those below them."""
_READ = ("input_cached_tokens", "cache_read_input_tokens", "input_cache_read")
_WRITTEN = ("cache_creation_input_tokens", "input_cache_creation", "input_cache_creation_tokens")
_WRITTEN_5M, _WRITTEN_1H = "input_cache_creation_5m", "input_cache_creation_1h"
_SENT_WORDS = ("input", "prompt", "cache")
_RECEIVED_WORDS = ("output", "completion", "reasoning", "thoughts")

Tokens = tuple[int | None, int | None, int | None, int | None, int | None]
"""Sent with the cache's part, received, read from the cache, written to it, and of that for an hour. All None: nothing is told."""


class Generations:
    """Which generations are the connection's, what they used, and their sums by bucket."""

    def __init__(self, config: ConnectionConfig, options: Options) -> None:
        self._name = config.asked
        self._models = OwnModels(config, options)
        if not self._models:
            raise PermanentError(
                f"{self._name}: the option models is missing; say which models are {config.provider}'s, e.g. models=my-gpt-*,prod-*"
            )
        self._includes_cache = options.one_of("input_includes_cache", ("auto", "yes", "no"), "auto")
        self._others: set[str] = set()

    def records(self, items: Iterable[Mapping[str, Any] | RejectedItem], window: Window) -> Iterator[Item]:
        """Records of the observations, in the API's spelling, that began in the window. One that comes again does not count again;
        what was rejected before is passed on."""
        groups: dict[Group, Sums] = {}
        seen: set[bytes] = set()
        self._others = set()
        for item in items:
            if isinstance(item, RejectedItem):
                yield item
                continue
            at: datetime | None = None
            try:
                at = instant(item, "startTime")
                if not window.start <= at < window.end:
                    continue
                name = optional_text(item, "id")
                if name is None:
                    raise BadItem("the observation has no id")
                identity = hashlib.blake2b(name.encode(), digest_size=16).digest()
                if identity in seen:
                    continue
                seen.add(identity)
                model = optional_text(item, "model") or optional_text(item, "providedModelName")
                if self._is_ours(model):
                    self._count(groups, item, str(model), floor(at, window.granularity))
            except BadItem as bad:
                kept = {name: item.get(name) for name in ("id", "traceId", "startTime", "model", "usageDetails")}
                yield RejectedItem(reason=f"{self._name}: {bad}", payload=kept, bucket_start=at or window.start)
        yield from (record(group, sums, window.granularity) for group, sums in groups.items())

    def remarks(self) -> list[str]:
        """Models that were left out."""
        if not self._others:
            return []
        shown = ", ".join(sorted(self._others)[:10])
        return [
            f"{self._name}: {len(self._others)} models were left out as another provider's ({shown}); the option models says which are read"
        ]

    def _is_ours(self, model: str | None) -> bool:
        """Whether the provider is asked for this model. Raises `BadItem` for a generation that names none."""
        if model is None:
            raise BadItem("the generation names no model")
        if model in self._models:
            return True
        self._others.add(model)
        return False

    def _count(self, groups: dict[Group, Sums], item: Mapping[str, Any], model: str, start: datetime) -> None:
        tokens = self._tokens(item)
        took, failed = _milliseconds(item.get("latency")), item.get("level") == "ERROR"
        group = Group(
            bucket_start=start,
            model=model,
            request_type="embedding" if item.get("type") == "EMBEDDING" or "embedding" in model else "chat",
            provider_project_id=optional_text(item, "projectId"),
            user_id=optional_text(item, "userId"),
            api_key_id=None,
            service_tier=None,
            context_window=prompt_length(tokens[0], LENGTHS, LONGEST),
            names=tuple((name, value) for name in ("environment",) if (value := optional_text(item, name))),
            metadata=(),
            knows_latency=took is not None,
            knows_tokens=tokens[0] is not None,
        )
        groups.setdefault(group, Sums()).add(
            *tokens, took, "error" if failed else None, first_token_ms=_milliseconds(item.get("timeToFirstToken"))
        )

    def _tokens(self, item: Mapping[str, Any]) -> Tokens:
        """Raises `BadItem` for counts that cannot be, or that say nothing for certain."""
        details = item.get("usageDetails")
        if not isinstance(details, Mapping):
            return None, None, None, None, None
        parts = {
            str(name): number for name in details if name != "total" and (number := optional_count(details, name)) is not None
        }
        if not any(_is_sent(name) or _is_received(name) for name in parts):
            return None, None, None, None, None
        sent, received = self._sums(parts, optional_count(details, "total"))
        read = next((parts[name] for name in _READ if name in parts), None)
        hours = parts.get(_WRITTEN_1H)
        written = next((parts[name] for name in _WRITTEN if name in parts), None)
        if written is None and (hours is not None or _WRITTEN_5M in parts):
            written = parts.get(_WRITTEN_5M, 0) + (hours or 0)
        if problem := token_problem(sent, received, read, written):
            raise BadItem(problem)
        return sent, received, read, written, hours

    def _sums(self, parts: Mapping[str, int], total: int | None) -> tuple[int, int]:
        """Tokens sent and received, with all of their parts."""
        whole = parts.get("input", 0), parts.get("output", 0)
        apart = (
            sum(number for name, number in parts.items() if _is_sent(name)),
            sum(number for name, number in parts.items() if _is_received(name)),
        )
        if self._includes_cache != "auto":
            return whole if self._includes_cache == "yes" else apart
        if whole == apart or total == sum(apart):
            return apart
        if total == sum(whole):
            return whole
        raise BadItem(
            "usageDetails do not say whether input holds what the cache served (total is none of the sums); "
            "set the option input_includes_cache"
        )


def _milliseconds(seconds: object) -> int | None:
    return round(Decimal(str(seconds)) * 1000) if isinstance(seconds, int | float | Decimal) and seconds >= 0 else None


def _is_received(name: str) -> bool:
    return any(word in name for word in _RECEIVED_WORDS)


def _is_sent(name: str) -> bool:
    return not _is_received(name) and any(word in name for word in _SENT_WORDS)
