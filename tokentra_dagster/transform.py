"""The dbt project as Dagster assets and checks. Asset keys are schema and name, so the graph joins without a mapping."""

# No `from __future__ import annotations` here: Dagster reads the annotations of assets as they are.

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, dbt_assets

from tokentra_dagster.build_evidence import changes_table, model_evidence
from tokentra_dagster.dbt_manifest import dbt_executable, ensure_manifest, project_folder, target_folder
from tokentra_dagster.ingest.assets import RECORDS
from tokentra_dagster.quotas.counters import rebuild_counters
from tokentra_dagster.resources import Warehouse
from tokentra_dagster.runtime import TELEMETRY_OFF
from tokentra_dagster.settings import Settings
from tokentra_dagster.warehouse.database import Database

KEPT_RUNS = 20
HOURS_SECONDS = 300
"""The longest that a flush builds the hours it touched by itself."""
PARTIAL_PARSE = "partial_parse.msgpack"
"""dbt's own file of what it has parsed."""


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest folders in `folder`: what dbt leaves of each run is for reading after a failure."""
    runs = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in runs[:-count]:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _parsed_before(parsed: Path, target: Path) -> Iterator[None]:
    """Give dbt what the run before parsed, so that it reads only files that changed since; keep it for the next one."""
    target.mkdir(parents=True, exist_ok=True)
    if parsed.exists():
        shutil.copy(parsed, target / PARTIAL_PARSE)
    yield
    # The next run may begin meanwhile: it finds the old one or the new one, whole.
    if (target / PARTIAL_PARSE).exists():
        (target / PARTIAL_PARSE).replace(parsed)


def build_hours(settings: Settings, database: Database) -> str | None:
    """Bring the hourly rollup, and what it is made from, up to date; None, or why it could not be, in a sentence.

    A few seconds instead of a build with all its models and checks, which follows as ever. Beside another build each model is built
    by one of them at a time (`begin_changes`).
    """
    import fasteners

    project, folder = str(project_folder()), target_folder(settings).parent / "hours"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        dbt_executable(), "--quiet", "run", "--select", "+hourly_usage_rollup", "--project-dir", project, "--profiles-dir", project,
        "--target-path", str(folder), "--log-path", str(folder / "logs"),
    ]  # fmt: skip
    env = {**os.environ, **TELEMETRY_OFF, **database.dbt_environment()}
    with fasteners.InterProcessLock(folder / ".build.lock"):
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=HOURS_SECONDS)
        except subprocess.TimeoutExpired:
            return f"The hourly rollup took over {HOURS_SECONDS} s; the build that follows makes it."
    return None if done.returncode == 0 else f"dbt failed:\n{(done.stdout + done.stderr)[-2000:]}"


# Every model asks for the whole build when usage changed: a build of a few models only would find the others missing on a new
# database. What changes while a build runs is built afterwards: only a request of our own, never a finished build, ends the wait.
FOLLOW_RECORDS = (
    dg.AutomationCondition.asset_matches(RECORDS, dg.AutomationCondition.newly_updated())
    .since(dg.AutomationCondition.newly_requested())
    .with_label("usage changed since the last build")
    & ~dg.AutomationCondition.in_progress()
    & ~dg.AutomationCondition.any_deps_in_progress()
)


class BuildConfig(dg.Config):
    """`full_refresh` builds everything anew instead of what changed."""

    full_refresh: bool = False


def _with_evidence(output: dg.Output[None], database: Database) -> dg.Output[None]:
    """dbt's own metadata of a model, and what the build did to it."""
    schema, _, model = output.output_name.partition("__")
    with database.connect() as db:
        found = model_evidence(db, schema, model)
    if not found:
        return output
    return output.with_metadata(
        {
            **output.metadata,
            "dagster/row_count": found["rows"],
            "up_to_change": found["up_to_change"],
            "changes_taken_in": dg.MetadataValue.md(changes_table(found["changes_taken_in"])),
        }
    )


class Translator(DagsterDbtTranslator):
    """Keys from schema and name; the folder is the group; eager automation follows new raw data."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        return dg.AssetKey([dbt_resource_props["schema"], dbt_resource_props.get("alias") or dbt_resource_props["name"]])

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        return str(dbt_resource_props["schema"])

    def get_owners(self, dbt_resource_props: Mapping[str, Any]) -> list[str]:
        return ["team:data-platform"]

    def get_automation_condition(self, dbt_resource_props: Mapping[str, Any]) -> dg.AutomationCondition | None:  # type: ignore[type-arg]
        return FOLLOW_RECORDS


def dbt_definitions(settings: Settings) -> tuple[dg.AssetsDefinition, DbtCliResource]:
    """The models as one multi-asset, and the dbt command it uses."""

    @dbt_assets(manifest=ensure_manifest(settings), dagster_dbt_translator=Translator(), name="dbt_models", pool="dbt")
    def dbt_models(
        context: dg.AssetExecutionContext, config: BuildConfig, dbt: DbtCliResource, warehouse: Warehouse
    ) -> Iterator[Any]:
        database = warehouse.database()
        arguments = ["build", "--exclude-resource-type", "unit_test", *(["--full-refresh"] if config.full_refresh else [])]
        target = target_folder(settings).parent / "runs" / context.run_id
        parsed = target_folder(settings).parent / PARTIAL_PARSE
        try:
            with _parsed_before(parsed, target):
                for event in dbt.cli(arguments, context=context, target_path=target).stream():
                    yield _with_evidence(event, database) if isinstance(event, dg.Output) else event
        finally:
            keep_newest(target.parent, KEPT_RUNS)
        # Restated usage corrects what quotas have counted (correction 30).
        for found in rebuild_counters(database):
            if found.difference:
                context.log.info(f"Quota {found.quota_name}: {found.measure} {found.counted_before:,} -> {found.counted:,}")

    project = project_folder()
    return dbt_models, DbtCliResource(project_dir=str(project), profiles_dir=str(project), dbt_executable=dbt_executable())
