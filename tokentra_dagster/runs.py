"""Work that changes data runs as a Dagster job, so that the UI's history shows it. This module is the commands' way in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokentra_dagster.errors import TokenTraError
from tokentra_dagster.settings import Settings

if TYPE_CHECKING:
    from dagster import Definitions, ExecuteInProcessResult


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """One Dagster run: its id, whether every step succeeded, and the checks that failed as `asset: check: why`."""

    run_id: str
    success: bool
    failed_checks: tuple[str, ...]
    error: str | None


def run_job(name: str, run_config: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None) -> RunOutcome:
    """Run one of our jobs in this process, recorded in the instance that the UI shows. `runtime.prepare` must have been called.

    What Dagster and dbt print goes to `JOB.log` under TOKENTRA_HOME/logs; the UI has it too.
    """
    folder = Settings.from_environment().home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        from dagster import DagsterInstance

        with DagsterInstance.get() as instance:
            result = (
                _definitions_of(name)
                .resolve_job_def(name)
                .execute_in_process(
                    run_config=dict(run_config or {}), tags=dict(tags or {}), instance=instance, raise_on_error=False
                )
            )
    return RunOutcome(result.run_id, result.success, _failed_checks(result), _first_error(result))


def _definitions_of(job: str) -> Definitions:
    """Only a build needs dbt, whose import takes seconds and memory."""
    from tokentra_dagster.ingest.definitions import JOB_NAMES, raw_layer

    if job in JOB_NAMES:
        return raw_layer
    from tokentra_dagster.definitions import defs

    return defs


def _failed_checks(result: ExecuteInProcessResult) -> tuple[str, ...]:
    from dagster import AssetCheckSeverity

    return tuple(
        f"{event.asset_key.to_user_string()}: {event.check_name}"
        for event in result.get_asset_check_evaluations()
        if not event.passed and event.severity == AssetCheckSeverity.ERROR
    )


def _first_error(result: ExecuteInProcessResult) -> str | None:
    """What the first failed step died of, in its own words, without our callers' wrappings."""
    errors = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    if not errors or errors[0] is None:
        return None
    deepest = errors[0]
    while deepest.cause is not None:
        deepest = deepest.cause
    return deepest.message.strip().split("\n")[0]


def must_succeed(outcome: RunOutcome, what: str) -> RunOutcome:
    """Raise `TokenTraError` with what went wrong and where to look."""
    if not outcome.success:
        raise TokenTraError(
            f"{what} failed: {outcome.error or 'see the run'} (Dagster run {outcome.run_id}; `tokentra up` shows its log)."
        )
    return outcome
