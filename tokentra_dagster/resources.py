"""The warehouse as a Dagster resource: opened when a run needs it, so that definitions load without a database."""

from __future__ import annotations

import os

from dagster import ConfigurableResource

from tokentra_dagster.runtime import prepare
from tokentra_dagster.settings import Settings
from tokentra_dagster.warehouse.database import Database


class Warehouse(ConfigurableResource["Warehouse"]):
    """Settings come from the environment (see `settings.py`)."""

    def database(self) -> Database:
        """The migrated database; also sets the environment that dbt reads."""
        return prepare(Settings.from_environment(os.environ))
