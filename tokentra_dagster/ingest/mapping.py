"""Which column of a file fills which field of a usage record: what a person said, same names, and well-known other names.

`TARGET=COLUMN`, `TARGET=@constant`, and products of columns and numbers (`total_latency_ms=api_seconds*1000`,
`input_tokens=requests*mean_input_tokens`). Pure; nothing here reads a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from zoneinfo import ZoneInfo

from tokentra_dagster.errors import UsageError
from tokentra_dagster.records import GRANULARITY_SECONDS, REQUEST_TYPES, SERVICE_TYPES, Granularity

TIMES = ("timestamp", "bucket_end")
TOKENS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_creation_tokens")
REQUESTS = ("request_count", "success_count", "error_count")
LATENCIES = (
    "total_latency_ms", "min_latency_ms", "max_latency_ms", "p50_latency_ms", "p95_latency_ms", "p99_latency_ms",
)  # fmt: skip
AMOUNTS = ("reported_cost", "quantity")
TEXTS = (
    "model", "request_type", "service_type", "service_tier", "quantity_unit", "currency", "provider_project_id", "api_key_id",
    "user_id", "team", "project", "cost_center", "feature", "environment", "context_window",
)  # fmt: skip
STATUS = "status"
TARGETS = (*TIMES, *TOKENS, *REQUESTS, *LATENCIES, *AMOUNTS, *TEXTS, STATUS)
OPEN_TARGETS = ("metadata.", "token_details.")
"""Prefixes that take any further name: text into `metadata`, counts into `token_details`."""
REQUIRED = ("timestamp", "model", "input_tokens", "output_tokens")

ALIASES: Mapping[str, tuple[str, ...]] = {
    "timestamp": (
        "bucket_start", "time", "datetime", "date_time", "date", "ts", "created_at", "created", "start_time", "started_at",
        "window_start", "request_time", "event_time",
    ),
    "bucket_end": ("window_end",),
    "model": ("model_name", "model_id"),
    "input_tokens": ("prompt_tokens", "tokens_in", "context_tokens", "input_token_count", "prompt_token_count"),
    "output_tokens": (
        "completion_tokens", "tokens_out", "generated_tokens", "output_token_count", "completion_token_count",
    ),
    "cached_input_tokens": (
        "cached_tokens", "cache_read_tokens", "cache_read_input_tokens", "cached_prompt_tokens", "input_cached_tokens",
    ),
    "cache_creation_tokens": ("cache_write_tokens", "cache_creation_input_tokens", "input_cache_write_tokens"),
    "request_count": ("requests", "num_requests", "num_model_requests"),
    "error_count": ("errors",),
    "total_latency_ms": ("latency_ms", "duration_ms"),
    "reported_cost": ("cost", "cost_usd", "total_cost", "response_cost"),
    "user_id": ("user",),
    "api_key_id": ("api_key", "key_id"),
    "environment": ("env",),
    "status": ("status_code", "http_status"),
}  # fmt: skip
ALLOWED_WORDS: Mapping[str, Sequence[str]] = {"request_type": REQUEST_TYPES, "service_type": SERVICE_TYPES}


@dataclass(frozen=True, slots=True)
class Expression:
    """A constant, or the product of columns and a number; one column alone when there is one column and the number is 1."""

    columns: tuple[str, ...] = ()
    factor: Decimal = Decimal(1)
    constant: str | None = None
    said: str = ""

    @property
    def is_product(self) -> bool:
        return len(self.columns) > 1 or "*" in self.said

    def __str__(self) -> str:
        return self.said


@dataclass(frozen=True, slots=True)
class Plan:
    """How to read a file's rows. `granularity` None means that each row is one request."""

    expressions: Mapping[str, Expression]
    found_by: Mapping[str, str]
    unused: tuple[str, ...] = ()
    granularity: Granularity | None = None
    bucket_seconds: int | None = None
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    excludes_cache: bool = False

    @property
    def stored_granularity(self) -> Granularity:
        """Requests are stored as minute records."""
        return self.granularity or "1m"


def make_plan(
    columns: Sequence[str], maps: Sequence[str] = (), *, granularity: str | None = None, bucket_seconds: int | None = None,
    timezone: str | None = None, input_convention: str = "includes-cache",
) -> Plan:  # fmt: skip
    """The plan for a file with these columns. Raises `UsageError` that says what to map, and to what."""
    expressions, found_by = _said(columns, maps)
    taken = {column for expression in expressions.values() if not expression.is_product for column in expression.columns}
    _by_name(columns, expressions, found_by, taken)
    missing = [target for target in REQUIRED if target not in expressions]
    if missing:
        raise UsageError(_ask_for(missing, columns))
    zone = _zone(timezone)
    width = _width(granularity, bucket_seconds, expressions)
    used = {column for expression in expressions.values() for column in expression.columns}
    return Plan(
        expressions, found_by, tuple(column for column in columns if column not in used),
        width, bucket_seconds, zone, input_convention == "excludes-cache",
    )  # fmt: skip


def _said(columns: Sequence[str], maps: Sequence[str]) -> tuple[dict[str, Expression], dict[str, str]]:
    expressions: dict[str, Expression] = {}
    for text in maps:
        target, equals, source = text.partition("=")
        target = {"bucket_start": "timestamp"}.get(target.strip(), target.strip())
        if not equals or not target or not source:
            raise UsageError(f"--map {text!r} is not TARGET=COLUMN, TARGET=@constant or TARGET=COLUMN*NUMBER.")
        if target not in TARGETS and not (target.startswith(OPEN_TARGETS) and not target.endswith(".")):
            raise UsageError(
                f"--map {text!r}: {target!r} is not a target. The targets are {', '.join(TARGETS)}, metadata.NAME and token_details.NAME."
            )
        if target in expressions:
            raise UsageError(f"--map gives {target} twice: {expressions[target]} and {source}. Keep one.")
        expressions[target] = _expression(source, columns, text)
        if expressions[target].is_product and (target in TEXTS or target in TIMES or target.startswith("metadata.")):
            raise UsageError(f"--map {text!r}: {target} is not a number, so it cannot be a product.")
    return expressions, dict.fromkeys(expressions, "--map")


def _expression(source: str, columns: Sequence[str], text: str) -> Expression:
    if source.startswith("@"):
        if not source[1:].strip():
            raise UsageError(f"--map {text!r}: the constant is empty; write @ and the value, for example @gpt-4o.")
        return Expression(constant=source[1:].strip(), said=source)
    if source in columns:
        return Expression((source,), said=source)
    names: list[str] = []
    factor = Decimal(1)
    for part in (part.strip() for part in source.split("*")):
        name = _column(part, columns)
        if name is not None:
            names.append(name)
            continue
        try:
            number = Decimal(part)
        except InvalidOperation:
            raise UsageError(
                f"--map {text!r}: the file has no column {part!r}. Its columns are {', '.join(columns)}. A constant starts with @."
            ) from None
        if not number.is_finite():
            raise UsageError(f"--map {text!r}: {part} is not a number that can be multiplied with.")
        factor *= number
    if not names:
        raise UsageError(f"--map {text!r} names no column; a constant starts with @, for example @{source}.")
    return Expression(tuple(names), factor, said=source)


def _column(name: str, columns: Sequence[str]) -> str | None:
    """Exactly, else without regard to case where only one fits."""
    if name in columns:
        return name
    alike = [column for column in columns if column.lower() == name.lower()]
    return alike[0] if len(alike) == 1 else None


def _by_name(columns: Sequence[str], expressions: dict[str, Expression], found_by: dict[str, str], taken: set[str]) -> None:
    """Fill what nobody said: a column of the target's own name, else the only one of its well-known other names."""
    snake: dict[str, list[str]] = {}
    for column in columns:
        snake.setdefault(_snake(column), []).append(column)
    for target in TARGETS:
        if target in expressions:
            continue
        own = snake.get(target, [])
        others = [column for alias in ALIASES.get(target, ()) for column in snake.get(alias, []) if column not in taken]
        chosen = own or others
        if len(chosen) == 1:
            expressions[target] = Expression((chosen[0],), said=chosen[0])
            found_by[target] = "same name" if own else "well-known name"


def _snake(column: str) -> str:
    """`ContextTokens`, `contextTokens` and `Context Tokens` as `context_tokens`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column.strip())
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def _ask_for(missing: Sequence[str], columns: Sequence[str]) -> str:
    examples = {
        "timestamp": "timestamp=COLUMN",
        "model": "model=COLUMN, or model=@gpt-4o for one model",
        "input_tokens": "input_tokens=COLUMN",
        "output_tokens": "output_tokens=COLUMN, or output_tokens=@0 where there is none",
    }
    how = "; ".join(f"--map {examples[target]}" for target in missing)
    return f"Which column is {' and which is '.join(missing)}? Say so: {how}. The file's columns are {', '.join(columns)}."


def _zone(name: str | None) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ValueError, OSError, LookupError):
        raise UsageError(f"--timezone is {name!r}; use an IANA name such as Europe/Berlin or UTC.") from None


def _width(granularity: str | None, seconds: int | None, expressions: Mapping[str, Expression]) -> Granularity | None:
    """The granularity that aggregated rows are stored at; `None` for requests."""
    if seconds is not None and (seconds < 1 or seconds > 86_400):
        raise UsageError(f"--bucket-seconds is {seconds}; it must be from 1 to 86400.")
    if granularity is None and seconds is not None:
        granularity = "1d" if seconds == 86_400 else "1h" if seconds == 3_600 else "1m"
    if granularity is None:
        aggregated = [name for name in ("request_count", "success_count", "error_count", "bucket_end") if name in expressions]
        if aggregated:
            raise UsageError(
                f"The file has {' and '.join(aggregated)} (column {expressions[aggregated[0]]}), so its rows are buckets of several "
                "requests: say how long they are with --granularity 1m, 1h or 1d, or --bucket-seconds N."
            )
        return None
    if STATUS in expressions:
        raise UsageError("status is for single requests; map success_count and error_count for buckets.")
    longest = {"1m": 3_600}.get(granularity, GRANULARITY_SECONDS[granularity])
    if seconds is not None and seconds > longest:
        raise UsageError(
            f"--bucket-seconds {seconds} does not fit --granularity {granularity}, whose buckets are at most {longest} s."
        )
    return granularity  # type: ignore[return-value]
