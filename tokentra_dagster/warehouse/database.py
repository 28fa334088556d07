"""Where the database is and how to connect to it. `Database.open(settings)` is the one entry for everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import conninfo
from psycopg.rows import dict_row

from tokentra_dagster.errors import TokenTraError
from tokentra_dagster.settings import Settings

OLDEST_SERVER = 150000
SEARCH_PATH = ("public", "app", "raw", "marts", "analytics")
DAGSTER_SCHEMA = "dagster"


@dataclass(frozen=True, slots=True)
class Database:
    """A reachable PostgreSQL. `url` holds the password: never print it except where a person asked for it."""

    url: str

    @classmethod
    def open(cls, settings: Settings) -> Database:
        """The configured server, or the embedded one, started if need be. Raises `TokenTraError` when it cannot be reached."""
        if settings.database_url:
            database = cls(settings.database_url)
            database.check_version()
            return database
        from tokentra_dagster.warehouse.embedded import EmbeddedServer

        return cls(EmbeddedServer(settings.home, settings.database_port).start())

    def connect(self, *, autocommit: bool = False, application: str = "tokentra") -> psycopg.Connection[dict[str, Any]]:
        """A connection with UTC sessions and rows as dictionaries."""
        try:
            return psycopg.connect(
                self.url, autocommit=autocommit, row_factory=dict_row, connect_timeout=10,
                application_name=application, options="-c timezone=UTC",
            )  # fmt: skip
        except psycopg.OperationalError as error:
            raise TokenTraError(
                f"Cannot reach the database at {self.public_address}: {_first_line(error)}. "
                "Check TOKENTRA_DATABASE_URL, or run `tokentra db status`."
            ) from None

    def check_version(self) -> None:
        with self.connect() as connection:
            if connection.info.server_version < OLDEST_SERVER:
                raise TokenTraError(
                    f"PostgreSQL at {self.public_address} is version {connection.info.server_version // 10000}; 15 or newer is needed."
                )

    @property
    def parts(self) -> dict[str, str]:
        return {key: str(value) for key, value in conninfo.conninfo_to_dict(self.url).items() if value is not None}

    @property
    def public_address(self) -> str:
        """Host, port and database, without user or password."""
        parts = self.parts
        return f"{parts.get('host', 'localhost')}:{parts.get('port', '5432')}/{parts.get('dbname', '')}"

    def dbt_environment(self) -> Mapping[str, str]:
        """What dbt's profile reads."""
        parts = self.parts
        return {
            "TOKENTRA_PG_HOST": parts.get("host", "localhost"),
            "TOKENTRA_PG_PORT": parts.get("port", "5432"),
            "TOKENTRA_PG_USER": parts.get("user", "postgres"),
            "TOKENTRA_PG_PASSWORD": parts.get("password", ""),
            "TOKENTRA_PG_DBNAME": parts.get("dbname", "postgres"),
        }

    def dagster_url(self) -> str:
        """The same database with Dagster's own schema first, for dagster-postgres."""
        separator = "&" if "?" in self.url else "?"
        return f"{self.url}{separator}options={quote(f'-c search_path={DAGSTER_SCHEMA}')}"


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
