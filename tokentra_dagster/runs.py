"""Work that changes data runs as a Dagster job, so that the UI's history shows it. This module is the commands' way in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokentra_dagster.errors import TokenTraError


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """One Dagster run: its id, whether every step succeeded, and the checks that failed as `asset: check: why`."""

    run_id: str
    success: bool
    failed_checks: tuple[str, ...]
    error: str | None


def run_job(
    name: str, run_config: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None, *, verbose: bool = False
) -> RunOutcome:
    """Run one of our jobs in this process, recorded in the instance that the UI shows. `runtime.prepare` must have been called."""
    import dagster as dg
    from dagster import DagsterInstance

    if not verbose:
        logging.getLogger("dagster").setLevel(logging.CRITICAL)
    from tokentra_dagster.definitions import defs

    with DagsterInstance.get() as instance:
        result = defs.resolve_job_def(name).execute_in_process(
            run_config=dict(run_config or {}), tags=dict(tags or {}), instance=instance, raise_on_error=False
        )
        failed = []
        for event in result.get_asset_check_evaluations():
            if not event.passed and event.severity == dg.AssetCheckSeverity.ERROR:
                failed.append(f"{event.asset_key.to_user_string()}: {event.check_name}")
        errors = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
        message = None
        if errors and errors[0] is not None:
            deepest = errors[0]
            while deepest.cause is not None:
                deepest = deepest.cause
            message = deepest.message.strip().split("\n")[0]
        return RunOutcome(result.run_id, result.success, tuple(failed), message)


def must_succeed(outcome: RunOutcome, what: str) -> RunOutcome:
    """Raise `TokenTraError` with what went wrong and where to look."""
    if not outcome.success:
        raise TokenTraError(
            f"{what} failed: {outcome.error or 'see the run'} (Dagster run {outcome.run_id}; `tokentra up` shows its log)."
        )
    return outcome
