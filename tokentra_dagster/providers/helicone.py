"""Helicone: requests from files of its export tool (`npx @helicone/export`), in a folder or S3 (providers.md 6.4).

A row is one request; a connection counts those of its own provider. What the export says, as far as Helicone's code tells
(Helicone/helicone: valhalla/jawn/src/lib/stores/request/request.ts, handlers/LoggingHandler.ts, HandlerContext.ts, packages/cost/usage/):

- `prompt_tokens` is what was not cached: reads and writes of the provider's cache are in `prompt_cache_read_tokens` and
  `prompt_cache_write_tokens`. Older rows may hold the whole (option `input_includes_cache`). `completion_tokens` is without reasoning
  where `reasoning_tokens` is told apart.
- A row whose `cache_reference_id` is another request's was answered by Helicone's own cache and asked no provider.
- Counts that were not told are zeros: a request that succeeded with no tokens at all is one whose tokens are unknown.
- `cost` is in dollars in the tool's files and in billionths of one in ClickHouse (HQL). It is an estimate by Helicone's prices.

Prompts and answers (`--include-body`) are passed over. Columns are those of the tool's JSON, of its CSV, and of HQL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from tokentra_dagster.errors import PermanentError
from tokentra_dagster.providers import export_place
from tokentra_dagster.providers.aws_s3 import Object
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.export_place import place_of
from tokentra_dagster.providers.export_rows import is_table, rows
from tokentra_dagster.providers.gateway_models import LENGTHS, LONGEST, OwnModels
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import BadItem, amount, count, optional_text, utc_instant
from tokentra_dagster.providers.request_groups import Group, Sums, prompt_length, record
from tokentra_dagster.records import EntityName, Item, RejectedItem, floor, token_problem

OPTIONS = (*export_place.OPTIONS, "helicone_providers", "models", "input_includes_cache", "cost", "attribution")
HELICONE_PROVIDERS = {
    "openai": ("openai",),
    "anthropic": ("anthropic",),
    "google": ("google", "google-ai-studio", "vertex", "vertexai"),
    "azure": ("azure",),
    "aws": ("aws", "bedrock"),
}
"""What Helicone calls each provider, in any case, unless the option says so."""
COSTS = {"price_list": Decimal(0), "dollars": Decimal(1), "billionths": Decimal("1e-9")}
"""What one unit of the column is worth; with `price_list` it is not read."""
_NO_REQUEST = "00000000-0000-0000-0000-000000000000"
_ID = ("request_id", "response_id")
_MODEL = ("request_model", "model", "response_model")
_STATUS = ("response_status", "status")
_USER = ("request_user_id", "user_id")
_LATENCY = ("delay_ms", "latency")
_COST = ("provider_total_cost", "cost", "cost_usd")
_PROPERTIES = ("properties", "request_properties")
_ADDRESS = ("request_path", "target_url")
_COLUMNS = (
    *_ID, *_MODEL, *_STATUS, *_USER, *_LATENCY, *_COST, *_PROPERTIES, *_ADDRESS, "request_created_at", "provider", "prompt_tokens",
    "completion_tokens", "reasoning_tokens", "prompt_cache_read_tokens", "prompt_cache_write_tokens", "cache_reference_id",
    "time_to_first_token",
)  # fmt: skip
_TIMES = (*_LATENCY, "time_to_first_token")
_NUMBERS = (
    *_STATUS, *_TIMES, "prompt_tokens", "completion_tokens", "reasoning_tokens", "prompt_cache_read_tokens", "prompt_cache_write_tokens",
)  # fmt: skip
_REQUEST_TYPES = (
    ("embedding", "embedding"), ("/images", "image"), ("/audio", "audio"), ("moderation", "moderation"), ("chat/completions", "chat"),
    ("/completions", "completion"),
)  # fmt: skip


class HeliconeSource:
    """The exported files of one place, for one provider."""

    def __init__(self, config: ConnectionConfig) -> None:
        options = Options(config, OPTIONS)
        self._name = config.asked
        self._place = place_of(config, options)
        self._providers = (
            tuple(name.lower() for name in options.texts("helicone_providers")) or HELICONE_PROVIDERS[config.provider]
        )
        self._models = OwnModels(config, options)
        self._includes_cache = options.one_of("input_includes_cache", ("no", "yes"), "no") == "yes"
        self._cost = COSTS[options.one_of("cost", tuple(COSTS), "price_list")]
        self._keys = {name: key.lower() for name, key in options.attribution().items()}
        self._others: set[str] = set()

    def usage(self, window: Window) -> Iterator[Item]:
        """Records of the requests that were made in the window. One that is in several files counts once, as the newest has it."""
        groups: dict[Group, Sums] = {}
        seen: set[bytes] = set()
        self._others = set()
        files = sorted(self._files(), key=lambda file: (file.modified, file.key), reverse=True)
        # What was last written before cannot speak of later.
        for key in (file.key for file in files if file.modified >= window.start):
            with self._place.opened(key) as file:
                for number, row in rows(file, key, _COLUMNS):
                    try:
                        if isinstance(row, BadItem):
                            raise row
                        self._take(groups, seen, row, window, f"{key}:{number}")
                    except BadItem as bad:
                        kept: dict[str, Any] = {"file": key, "row": number}
                        if isinstance(row, Mapping):
                            kept |= {
                                name: row.get(name) for name in ("request_id", "response_id", "request_created_at", "provider")
                            }
                        yield RejectedItem(reason=f"{self._name}: {bad}", payload=kept, bucket_start=window.start)
        yield from (record(group, sums, window.granularity) for group, sums in groups.items())

    def costs(self, window: Window) -> Iterator[Item]:
        """Nothing: its costs are estimates."""
        yield from ()

    def names(self) -> Iterator[EntityName]:
        """Nothing: a request names its user itself."""
        yield from ()

    def remarks(self) -> list[str]:
        """Whose requests were left out."""
        if not self._others:
            return []
        shown = ", ".join(sorted(self._others)[:10])
        return [
            f"{self._name}: requests of {len(self._others)} others were left out ({shown}); the options helicone_providers and models say "
            "which are read"
        ]

    def check(self) -> str:
        """How many files there are. Raises as `usage` does."""
        return f"{self._name}: {len(self._files()):,} exported files in {self._place.url}"

    def _files(self) -> list[Object]:
        """None at all is a wrong place, not a folder without usage."""
        found = [file for file in self._place.objects("") if is_table(file.key)]
        if not found:
            raise PermanentError(
                f"{self._name}: {self._place.url} holds no .jsonl, .json, .csv or .parquet file; correct the option location"
            )
        return found

    def _take(self, groups: dict[Group, Sums], seen: set[bytes], row: Mapping[str, Any], window: Window, place: str) -> None:
        """Count the row if it is of the window, new and the provider's. Raises `BadItem`."""
        at = utc_instant(row, "request_created_at")
        if not window.start <= at < window.end:
            return
        # Without an id nothing tells a repeat: the row is its own request.
        identity = hashlib.blake2b((_text(row, _ID) or place).encode(), digest_size=16).digest()
        if identity in seen:
            return
        seen.add(identity)
        model = _text(row, _MODEL)
        if not self._is_ours(row, model):
            return
        if model is None:
            raise BadItem("the request names no model; export as jsonl")
        self._count(groups, row, model, floor(at, window.granularity))

    def _count(self, groups: dict[Group, Sums], row: Mapping[str, Any], model: str, start: datetime) -> None:
        """Add the request to its group. Raises `BadItem`."""
        numbers = {name: _number(row, name) for name in _NUMBERS if row.get(name) is not None}
        is_cached = (optional_text(row, "cache_reference_id") or _NO_REQUEST) != _NO_REQUEST
        status = next((numbers[name] for name in _STATUS if name in numbers), None)
        failed = status is not None and not 0 < status < 400
        tokens = (0, 0, None, None) if is_cached else self._tokens(numbers, failed)
        if tokens and (problem := token_problem(*tokens)):
            raise BadItem(problem)
        sent, received, read, written = tokens or (None, None, None, None)
        # A time that was not measured is 0, too.
        latency, first = (
            None if is_cached or failed else next((numbers[name] for name in names if numbers.get(name, 0) > 0), None)
            for names in (_LATENCY, ("time_to_first_token",))
        )
        properties = _properties(row)
        said = {name: value for name, key in self._keys.items() if (value := properties.get(key))}
        user = said.pop("user", None) or _text(row, _USER)
        cost = self._cost_of(row)
        group = Group(
            bucket_start=start,
            model=model,
            request_type=_request_type(_text(row, _ADDRESS) or "", model),
            provider_project_id=None,
            user_id=user,
            api_key_id=None,
            service_tier=None,
            context_window=prompt_length(sent, LENGTHS, LONGEST),
            names=tuple(sorted(said.items())),
            metadata=(("cache_hit", True),) if is_cached else (),
            knows_latency=latency is not None,
            knows_tokens=tokens is not None,
            knows_cost=cost is not None,
        )
        groups.setdefault(group, Sums()).add(
            sent, received, read, written, None, latency, str(status) if failed else None, first_token_ms=first, cost=cost
        )

    def _is_ours(self, row: Mapping[str, Any], model: str | None) -> bool:
        """By what Helicone calls the provider; where that is not said, by the model."""
        provider = optional_text(row, "provider")
        if provider is not None:
            ours = provider.lower() in self._providers
        elif not self._models:
            raise BadItem(
                "the row names no provider; export as jsonl, or say with the option models which models are the provider's"
            )
        else:
            ours = model is None or model in self._models
        if not ours:
            self._others.add(provider or str(model))
        return ours

    def _tokens(self, numbers: Mapping[str, int], failed: bool) -> tuple[int, int, int | None, int | None] | None:
        """Sent with the cache's part, received with what was reasoned, read from the cache and written to it; None: unknown."""
        prompt, completion = numbers.get("prompt_tokens"), numbers.get("completion_tokens")
        read, written = numbers.get("prompt_cache_read_tokens"), numbers.get("prompt_cache_write_tokens")
        received = (completion or 0) + numbers.get("reasoning_tokens", 0)
        if (prompt is None and completion is None) or not (failed or prompt or received or read or written):
            return None
        sent = (prompt or 0) + (0 if self._includes_cache else (read or 0) + (written or 0))
        return sent, received, read, written

    def _cost_of(self, row: Mapping[str, Any]) -> Decimal | None:
        said = next((name for name in _COST if row.get(name) is not None), None) if self._cost else None
        return amount(row, said) * self._cost if said else None


def _text(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """What the first of the columns that has something says."""
    return next((text for name in names if (text := optional_text(row, name))), None)


def _number(row: Mapping[str, Any], name: str) -> int:
    """A whole number, in CSV as text. Raises `BadItem`."""
    number = amount(row, name)
    if name in _TIMES:
        return round(number)
    return int(number) if name in _STATUS else count({name: number}, name)


def _properties(row: Mapping[str, Any]) -> dict[str, str]:
    """The caller's own properties, names in lower case. Raises `BadItem` for what is no object."""
    said = next((row[name] for name in _PROPERTIES if row.get(name)), None)
    if isinstance(said, str):
        try:
            # The tool's CSV doubles the quotes of an object twice.
            said = json.loads(said.replace('""', '"') if said.startswith('{""') else said)
        except ValueError:
            raise BadItem("the properties are no JSON object") from None
    if said is None:
        return {}
    if not isinstance(said, Mapping):
        raise BadItem(f"the properties are {type(said).__name__}; an object is required")
    return {str(name).lower(): value for name, value in said.items() if isinstance(value, str) and value}


def _request_type(address: str, model: str) -> str:
    return next((kind for word, kind in _REQUEST_TYPES if word in address), "embedding" if "embedding" in model else "chat")
