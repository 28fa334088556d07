"""The stored functions (specification 2.7; corrections 5, 7, 10, 12 to 17, 20, 23, 33, 42; docs/functions.md)."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"

FILES = ("functions_parts.sql", "functions_usage.sql", "functions_reports.sql")


def upgrade() -> None:
    for name in FILES:
        op.get_bind().exec_driver_sql((Path(__file__).parent.parent / name).read_text().replace("%", "%%"))
