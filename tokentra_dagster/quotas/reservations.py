"""May this request go ahead? One round trip each to the functions in PostgreSQL (docs/quotas.md), with typed answers.

Connections must be in autocommit mode: a counter is locked until the transaction that reserved has ended, and a request to a
provider takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from tokentra_dagster.errors import TokenTraError, UsageError

SCOPE = "%(org_id)s, %(team_id)s, %(project_id)s, %(feature)s, %(api_key_id)s, %(user_identifier)s"
AMOUNTS = "%(tokens)s::bigint, %(input_tokens)s::bigint, %(output_tokens)s::bigint, %(requests)s::bigint"
CHECK = f"SELECT * FROM app.check_quota_before_request({SCOPE}, {AMOUNTS})"
# A counter stays locked until the commit is done, so the commit does not wait for the disk. What is lost when the machine dies is less
# than a second of reservations; usage holds their requests all the same.
NO_WAIT = "set_config('synchronous_commit', 'off', true)"
RESERVE = f"SELECT r.* FROM {NO_WAIT}, app.reserve_quota({SCOPE}, {AMOUNTS}, %(expires_after)s, %(idempotency_key)s) AS r"
SETTLE = f"SELECT r.* FROM {NO_WAIT}, app.settle_quota(%(reservation_id)s, {AMOUNTS}) AS r"
RELEASE = f"SELECT r.* FROM {NO_WAIT}, app.release_quota(%s) AS r"


@dataclass(frozen=True, slots=True)
class Request:
    """Whose request it is and what it is expected to need. Without `tokens`, input and output tokens add up to them; a part that
    is None may be all of the tokens, and counts as such against its own limit."""

    org_id: UUID
    tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    requests: int = 1
    team_id: UUID | None = None
    project_id: UUID | None = None
    user_identifier: str | None = None
    api_key_id: str | None = None
    feature: str | None = None


COLUMNS = tuple(column.name for column in fields(Request))


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """A limit that the request would pass. `current_usage` holds what is used and what is reserved; counts, not per cent."""

    quota_id: UUID
    quota_name: str
    limit_type: str
    enforcement_mode: str
    current_usage: int
    limit: int
    projected_usage: int
    period_end: datetime


@dataclass(frozen=True, slots=True)
class QuotaWarning:
    """A limit that the request keeps but comes near; `level` is warning or critical, the others are per cent."""

    quota_id: UUID
    quota_name: str
    limit_type: str
    level: str
    utilization_pct: float
    threshold: int


@dataclass(frozen=True, slots=True)
class Decision:
    """`decision` is allowed, throttled or blocked. `retry_after` in seconds is set only when throttled, and is None then too where
    the request is larger than the limit. Violations of quotas that only alert are listed and refuse nothing."""

    allowed: bool
    decision: str
    reason: str | None
    retry_at: datetime | None
    retry_after: int | None
    violations: tuple[QuotaViolation, ...]
    warnings: tuple[QuotaWarning, ...]
    applicable_quotas: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class Reservation:
    """`id` and `expires_at` are None where the decision refuses."""

    decision: Decision
    id: UUID | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """`changed` is False where the reservation was closed before: nothing was counted again. `was_expired`: room that it had held
    was given back before; what it used counts all the same."""

    reservation_id: UUID
    state: str
    changed: bool
    was_expired: bool


class QuotaRefused(TokenTraError):
    """A quota throttles or blocks the request; `decision` says which, why, and when to retry."""

    def __init__(self, decision: Decision) -> None:
        retry = f"; retry in {decision.retry_after} s" if decision.retry_after is not None else ""
        super().__init__(f"The request is {decision.decision}: {decision.reason}{retry}.")
        self.decision = decision


@dataclass(slots=True)
class HeldReservation:
    """What `reserved` hands out: say with `use` what the request really used."""

    reservation: Reservation
    actual: dict[str, int | None] | None = field(default=None)

    def use(
        self,
        *,
        tokens: int | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        requests: int | None = None,
    ) -> None:
        self.actual = {"tokens": tokens, "input_tokens": input_tokens, "output_tokens": output_tokens, "requests": requests}


def check(db: psycopg.Connection[Any], request: Request) -> Decision:
    """Whether the request would be let pass now. Holds nothing: only `reserve` makes sure."""
    return _decision(_row(db, CHECK, _parameters(request)))


def reserve(
    db: psycopg.Connection[Any], request: Request, *, expires_after: int = 300, idempotency_key: str | None = None
) -> Reservation:
    """Take the estimate from all quotas that apply, or from none. `expires_after` is in seconds, at most a day. The same
    `idempotency_key` gives the same reservation again."""
    row = _row(db, RESERVE, _parameters(request) | {"expires_after": expires_after, "idempotency_key": idempotency_key})
    return Reservation(_decision(row), row["reservation_id"], row["expires_at"])


def settle(
    db: psycopg.Connection[Any],
    reservation_id: UUID,
    *,
    tokens: int | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    requests: int | None = None,
) -> Settlement:
    """Replace the estimate with what was used (`requests`: as reserved unless given). Twice counts once. Raises `UsageError` for an
    id that was never given or that ended more than two days ago."""
    amounts = {"tokens": tokens, "input_tokens": input_tokens, "output_tokens": output_tokens, "requests": requests}
    return Settlement(**_row(db, SETTLE, {"reservation_id": reservation_id, **amounts}))


def release(db: psycopg.Connection[Any], reservation_id: UUID) -> Settlement:
    """Give the estimate back: the request was not made. After `settle` it changes nothing."""
    return Settlement(**_row(db, RELEASE, [reservation_id]))


@contextmanager
def reserved(
    db: psycopg.Connection[Any], request: Request, *, expires_after: int = 300, idempotency_key: str | None = None
) -> Iterator[HeldReservation]:
    """Reserve, make the request in the block, settle. Raises `QuotaRefused` before the block. Without `use`, the estimate counts;
    where the block raises before `use`, the reservation is released."""
    reservation = reserve(db, request, expires_after=expires_after, idempotency_key=idempotency_key)
    if reservation.id is None:
        raise QuotaRefused(reservation.decision)
    held = HeldReservation(reservation)
    try:
        yield held
    except BaseException:
        if held.actual is None:
            release(db, reservation.id)
        else:
            settle(db, reservation.id, **held.actual)
        raise
    estimate = {"tokens": request.tokens, "input_tokens": request.input_tokens, "output_tokens": request.output_tokens}
    settle(db, reservation.id, **(held.actual or estimate))


def _parameters(request: Request) -> dict[str, Any]:
    return {column: getattr(request, column) for column in COLUMNS}


def _row(db: psycopg.Connection[Any], statement: str, parameters: Any) -> dict[str, Any]:
    if not db.autocommit:
        raise UsageError(
            "Quotas need a connection in autocommit mode: otherwise a counter stays locked until the transaction ends. "
            "Connect with autocommit=True."
        )
    try:
        row = db.cursor(row_factory=dict_row).execute(statement, parameters).fetchone()
    except (psycopg.errors.NoDataFound, psycopg.errors.InvalidParameterValue, psycopg.errors.InsufficientPrivilege) as error:
        raise UsageError(f"{error.diag.message_primary}.") from None
    assert row is not None, "each of these functions answers with one row"
    return row


def _decision(row: dict[str, Any]) -> Decision:
    return Decision(
        allowed=row["allowed"],
        decision=row["decision"],
        reason=row["reason"],
        retry_at=row["retry_at"],
        retry_after=row["retry_after"],
        violations=tuple(_violation(item) for item in row["violations"]),
        warnings=tuple(QuotaWarning(**(item | {"quota_id": UUID(item["quota_id"])})) for item in row["warnings"]),
        applicable_quotas=tuple(row["applicable_quotas"]),
    )


def _violation(item: dict[str, Any]) -> QuotaViolation:
    return QuotaViolation(
        **(item | {"quota_id": UUID(item["quota_id"]), "period_end": datetime.fromisoformat(item["period_end"])})
    )
