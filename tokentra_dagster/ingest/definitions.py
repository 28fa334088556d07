"""The raw layer as Dagster sees it: assets, checks, jobs and schedules that need no dbt.

The whole platform (`tokentra_dagster.definitions`) is this and dbt. The commands that only load run their job from here, so that
neither the time nor the 85 MB that importing dbt takes are theirs.
"""

from __future__ import annotations

import dagster as dg

from tokentra_dagster.ingest.assets import JOBS, SYNCS, TABLES
from tokentra_dagster.ingest.freshness import freshness_job, freshness_schedule, usage_is_fresh
from tokentra_dagster.ingest.imports import apply_rules_job, import_job, imported_usage
from tokentra_dagster.ingest.schedules import SCHEDULES
from tokentra_dagster.resources import Warehouse

_jobs: list[dg.JobDefinition | dg.UnresolvedAssetJobDefinition] = [*JOBS.values(), import_job, apply_rules_job, freshness_job]
JOB_NAMES = {job.name for job in _jobs}
raw_layer = dg.Definitions(
    assets=[*SYNCS, *TABLES, imported_usage],
    jobs=_jobs,
    asset_checks=[usage_is_fresh],
    schedules=[*SCHEDULES, freshness_schedule],
    resources={"warehouse": Warehouse()},
)
