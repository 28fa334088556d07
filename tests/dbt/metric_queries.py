"""MetricFlow against a test's own database: the semantic manifest that dbt wrote, MetricFlow's SQL, psycopg's rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metricflow.engine.metricflow_engine import MetricFlowEngine, MetricFlowQueryRequest
from metricflow.protocols.sql_client import SqlEngine
from metricflow.sql.render.postgres import PostgresSQLSqlPlanRenderer
from metricflow_semantics.model.dbt_manifest_parser import parse_manifest_from_dbt_generated_manifest
from metricflow_semantics.model.semantic_manifest_lookup import SemanticManifestLookup

from tokentra_dagster.warehouse.database import Database


class _Dialect:
    """What MetricFlow asks of a client before it writes SQL. The SQL itself runs over our own connection."""

    sql_engine_type = SqlEngine.POSTGRES
    sql_plan_renderer = PostgresSQLSqlPlanRenderer()


class Metrics:
    """The metrics of a parsed project. The manifest names the database that dbt parsed for; `database` must be it."""

    def __init__(self, target: Path, database: Database) -> None:
        manifest = parse_manifest_from_dbt_generated_manifest((target / "semantic_manifest.json").read_text())
        self._engine = MetricFlowEngine(semantic_manifest_lookup=SemanticManifestLookup(manifest), sql_client=_Dialect())
        self._database = database

    def sql(self, metrics: Sequence[str], group_by: Sequence[str] = (), where: Sequence[str] = ()) -> str:
        request = MetricFlowQueryRequest.create(
            metric_names=list(metrics), group_by_names=list(group_by), where_constraints=list(where)
        )
        return self._engine.explain(request).sql_statement.sql

    def query(
        self, metrics: Sequence[str], group_by: Sequence[str] = (), where: Sequence[str] = (), timezone: str = "UTC"
    ) -> list[dict[str, Any]]:
        """One row per group, as `mf query` shows them; `timezone` is the client's."""
        with self._database.connect() as db:
            db.execute("SELECT set_config('timezone', %s, false)", [timezone])
            return db.execute(self.sql(metrics, group_by, where)).fetchall()
