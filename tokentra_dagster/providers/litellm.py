"""LiteLLM's proxy: its spend log, read from the PostgreSQL that it writes to (providers.md 6.1).

A row of `"LiteLLM_SpendLogs"` is one request to a provider; a connection reads those of its own provider. Rows that the proxy's
response cache answered (`cache_hit`, or `_cache_hit` in the id) asked no provider: they count as requests without tokens and are
marked. A call that was tried again is a row a try, marked too. Prompts and answers are never selected. Its `spend` is an estimate
of its own; ours is by the price list.

Paged by (startTime, request_id), which has an index, in a read-only session; a session that ends is opened again at that place.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import conninfo, sql
from psycopg.rows import dict_row

from tokentra_dagster.errors import PermanentError, TransientError
from tokentra_dagster.providers.base import ConnectionConfig, Window
from tokentra_dagster.providers.gateway_models import LENGTHS, LONGEST
from tokentra_dagster.providers.options import Options
from tokentra_dagster.providers.payload import BadItem
from tokentra_dagster.providers.request_groups import Group, Sums, prompt_length, record
from tokentra_dagster.records import EntityName, Item, RejectedItem, floor, token_problem

OPTIONS = ("database", "llm_providers")
PAGE = 5000
LLM_PROVIDERS = {
    "openai": ("openai", "text-completion-openai"),
    "anthropic": ("anthropic",),
    "google": ("vertex_ai", "vertex_ai_beta", "gemini"),
    "azure": ("azure", "azure_ai", "azure_text"),
    "aws": ("bedrock", "bedrock_converse"),
}
"""What LiteLLM calls each provider (`custom_llm_provider`), unless the option says so."""
_TABLE = sql.Identifier("LiteLLM_SpendLogs")
_COLUMNS = (
    "request_id",
    "startTime",
    "endTime",
    "model",
    "custom_llm_provider",
    "prompt_tokens",
    "completion_tokens",
    "api_key",
    "user",
)
_NEWER = ("call_type", "cache_hit", "team_id", "end_user", "status", "request_duration_ms", "litellm_call_id", "model_group")
_SAID = (
    "user_api_key_alias", "user_api_key_team_alias", "user_api_key_user_email", "user_api_key_project_alias", "additional_usage_values",
    "status", "error_information",
)  # fmt: skip
_REQUEST_TYPES = (
    ("embedding", "embedding"), ("image", "image"), ("transcription", "audio"), ("speech", "audio"), ("moderation", "moderation"),
    ("text_completion", "completion"), ("completion", "chat"), ("responses", "chat"), ("messages", "chat"),
)  # fmt: skip
_MOST_CALLS = 100_000
_KEY = "the password of a database role that may read LiteLLM_SpendLogs"


class LiteLLMSource:
    """The spend log of one proxy, for one provider."""

    def __init__(self, config: ConnectionConfig) -> None:
        options = Options(config, OPTIONS)
        address = options.text("database")
        if address is None:
            raise PermanentError(
                "litellm: the option database is missing, e.g. database=postgresql://reader@db.example:5432/litellm"
            )
        try:
            parts = conninfo.conninfo_to_dict(address)
        except psycopg.ProgrammingError:
            raise PermanentError(
                "litellm: the option database is no address of PostgreSQL; write postgresql://USER@HOST:5432/NAME"
            ) from None
        if "password" in parts:
            raise PermanentError(
                "litellm: the option database holds a password; leave it out and give it as the connection's secret"
            )
        self._parts, self._config = parts, config
        self._seconds, self._retries = options.timeout_seconds, options.max_retries
        self._names = options.texts("llm_providers") or LLM_PROVIDERS[config.provider]
        self._columns: tuple[str, ...] | None = None

    def usage(self, window: Window) -> Iterator[Item]:
        """Records of the requests that began in the window, by bucket."""
        groups: dict[Group, Sums] = {}
        calls: OrderedDict[str, None] = OrderedDict()
        reached: datetime | None = None
        for row in self._rows(window):
            at: datetime = row["startTime"].replace(tzinfo=UTC)
            start = floor(at, window.granularity)
            if reached is not None and start > reached:
                yield from (record(group, sums, window.granularity) for group, sums in groups.items())
                groups = {}
            reached = start
            try:
                _count(groups, row, start, _is_known(calls, row.get("litellm_call_id")))
            except BadItem as bad:
                kept = {name: row[name] for name in ("request_id", "model", "prompt_tokens", "completion_tokens")}
                yield RejectedItem(reason=f"litellm: {bad}", payload=kept, bucket_start=at)
        yield from (record(group, sums, window.granularity) for group, sums in groups.items())

    def costs(self, window: Window) -> Iterator[Item]:
        """Nothing: what LiteLLM calls spend is an estimate and no bill."""
        yield from ()

    def names(self) -> Iterator[EntityName]:
        """Keys with their aliases, of the last week."""
        query = sql.SQL(
            "SELECT DISTINCT api_key, metadata ->> 'user_api_key_alias' AS alias FROM {} "
            "WHERE \"startTime\" >= now() AT TIME ZONE 'UTC' - INTERVAL '7 days' AND api_key <> ''"
        ).format(_TABLE)
        for row in self._ask(query, []):
            if row["alias"]:
                yield EntityName(kind="api_key", id=row["api_key"], name=row["alias"])

    def remarks(self) -> list[str]:
        return []

    def check(self) -> str:
        """The newest row. Raises as `usage` does."""
        (row,) = self._ask(sql.SQL('SELECT max("startTime") AS newest FROM {}').format(_TABLE), [])
        newest = (
            f"newest request {row['newest']:%Y-%m-%d %H:%M} UTC" if row["newest"] else "no request yet; are spend logs enabled?"
        )
        return f"litellm: password accepted; {newest}"

    # ---- The database ------------------------------------------------------------------------------------------------

    def _rows(self, window: Window) -> Iterator[dict[str, Any]]:
        """Page by page, from where the page before ended."""
        after: tuple[datetime, str] = (window.start.replace(tzinfo=None), "")
        columns = self._known_columns()
        query = sql.SQL(
            'SELECT {columns}, {said} FROM {table} WHERE ("startTime", request_id) > (%s, %s) AND "startTime" < %s '
            'AND lower(custom_llm_provider) = ANY (%s) ORDER BY "startTime", request_id LIMIT {page}'
        ).format(
            columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
            said=sql.SQL(", ").join(sql.SQL("metadata -> {} AS {}").format(sql.Literal(name), sql.Identifier(f"said_{name}")) for name in _SAID),
            table=_TABLE,
            page=sql.Literal(PAGE),
        )  # fmt: skip
        while True:
            page = self._ask(query, [*after, window.end.replace(tzinfo=None), list(self._names)])
            yield from page
            if len(page) < PAGE:
                return
            after = (page[-1]["startTime"], page[-1]["request_id"])

    def _known_columns(self) -> tuple[str, ...]:
        """Those that this installation has: older ones lack the newest."""
        if self._columns is None:
            found = self._ask(
                sql.SQL("SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"),
                ['"LiteLLM_SpendLogs"'],
            )
            there = {row["attname"] for row in found}
            missing = [name for name in (*_COLUMNS, "metadata") if name not in there]
            if missing:
                what = f"has no column {', '.join(missing)}" if there else "is not there, or the role may not see it"
                raise PermanentError(
                    f"litellm: the table LiteLLM_SpendLogs {what}; correct the option database or its search_path"
                )
            self._columns = (*_COLUMNS, *(name for name in _NEWER if name in there))
        return self._columns

    def _ask(self, query: sql.SQL | sql.Composed, parameters: Sequence[Any]) -> list[dict[str, Any]]:
        """The rows of one statement in a session of its own. Raises `PermanentError` or, after the retries, `TransientError`."""
        for attempt in range(self._retries + 1):
            failure: PermanentError | TransientError
            try:
                with self._session() as session:
                    return session.execute(query, parameters).fetchall()
            except psycopg.Error as error:
                failure = self._translate(error)
            # Raised out here: psycopg's error may hold the address.
            if isinstance(failure, PermanentError) or attempt == self._retries:
                raise failure
            time.sleep(min(0.25 * 2**attempt, 8.0))
        raise AssertionError("unreachable")

    def _session(self) -> psycopg.Connection[dict[str, Any]]:
        settings = f"-c default_transaction_read_only=on -c statement_timeout={int(self._seconds * 1000)} -c timezone=UTC"
        given: dict[str, Any] = {
            **self._parts,
            "password": self._config.api_key,
            "options": settings,
            "connect_timeout": max(int(self._seconds), 2),
        }
        return psycopg.connect(conninfo.make_conninfo(**given), row_factory=dict_row, application_name="tokentra")

    def _translate(self, error: psycopg.Error) -> PermanentError | TransientError:
        said = " ".join(str(error).split()).replace(self._config.api_key or "\0", "[secret]")[:300]
        if isinstance(error, psycopg.errors.QueryCanceled):
            return TransientError(
                "litellm: the database did not answer in time; try again later or raise the option timeout_seconds"
            )
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            return PermanentError(f"litellm: the role may not read LiteLLM_SpendLogs; give the connection {_KEY}")
        if any(
            word in said for word in ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry")
        ):
            return PermanentError(
                f"litellm: the database refused ({said}); correct the option database or give the connection {_KEY}"
            )
        if isinstance(error, psycopg.OperationalError):
            return TransientError(
                f"litellm: the database cannot be reached ({said}); try again later or correct the option database"
            )
        return PermanentError(f"litellm: the database refused the question ({said}); is this a spend log of LiteLLM?")


def _count(groups: dict[Group, Sums], row: Mapping[str, Any], start: datetime, is_retry: bool) -> None:
    """Add the request to its group. Raises `BadItem`."""
    is_cached = row.get("cache_hit") == "True" or "_cache_hit" in row["request_id"]
    failed = (row.get("status") or row["said_status"]) == "failure"
    sent, received, read, written = (0, 0, None, None) if is_cached else _tokens(row)
    if problem := token_problem(sent, received, read, written):
        raise BadItem(problem)
    latency = None if is_cached or failed else _latency(row)
    error = row["said_error_information"] if isinstance(row["said_error_information"], Mapping) else {}
    names = {"team": row["said_user_api_key_team_alias"] or row.get("team_id"), "project": row["said_user_api_key_project_alias"]}
    about = {"model_group": row.get("model_group"), "cache_hit": is_cached or None, "is_retry": is_retry or None}
    group = Group(
        bucket_start=start,
        model=_model(row["model"], row["custom_llm_provider"]),
        request_type=next((kind for word, kind in _REQUEST_TYPES if word in (row.get("call_type") or "")), None),
        provider_project_id=None,
        user_id=row.get("end_user") or row["said_user_api_key_user_email"] or row["user"] or None,
        api_key_id=row["api_key"] or None,
        service_tier=None,
        context_window=prompt_length(sent, LENGTHS, LONGEST),
        names=tuple((name, value) for name, value in names.items() if value),
        metadata=tuple((name, value) for name, value in about.items() if value),
        knows_latency=latency is not None,
        knows_tokens=True,
    )
    code = str(error.get("error_code") or "failure") if failed else None
    groups.setdefault(group, Sums()).add(sent, received, read, written, None, latency, code)


def _tokens(row: Mapping[str, Any]) -> tuple[int, int, int | None, int | None]:
    """Sent with cache reads and writes, received, and of what was sent read from and written to the provider's cache."""
    further = row["said_additional_usage_values"]
    counts = further if isinstance(further, Mapping) else {}
    read, written = (
        value if isinstance(value, int) and not isinstance(value, bool) else None
        for value in (counts.get("cache_read_input_tokens"), counts.get("cache_creation_input_tokens"))
    )
    return row["prompt_tokens"] or 0, row["completion_tokens"] or 0, read, written


def _latency(row: Mapping[str, Any]) -> int | None:
    said = row.get("request_duration_ms")
    if said is not None:
        return int(said) if said >= 0 else None
    if row["endTime"] is None or row["endTime"] < row["startTime"]:
        return None
    took: timedelta = row["endTime"] - row["startTime"]
    return round(took.total_seconds() * 1000)


def _model(model: str, llm_provider: str) -> str:
    """Without LiteLLM's own prefix: `bedrock/us.anthropic.claude...` is Bedrock's `us.anthropic.claude...`."""
    first, _, rest = model.partition("/")
    return rest if rest and first.lower() in (llm_provider.lower(), *sum(LLM_PROVIDERS.values(), ())) else model


def _is_known(calls: OrderedDict[str, None], call: str | None) -> bool:
    """Whether a row before was of the same call of an application."""
    if not call:
        return False
    if call in calls:
        return True
    calls[call] = None
    if len(calls) > _MOST_CALLS:
        calls.popitem(last=False)
    return False
