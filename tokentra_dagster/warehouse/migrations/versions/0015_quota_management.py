"""Quotas in operation (docs/quotas.md): corrections of counters are kept, refusals expire into counts, readers see their own; reserving
takes fewer statements (docs/decisions/0011)."""

from pathlib import Path

from alembic import op

revision = "0015"
down_revision = "0014"

FILES = ("quota_management.sql", "quota_reserving.sql")


def upgrade() -> None:
    for name in FILES:
        op.get_bind().exec_driver_sql((Path(__file__).parent.parent / name).read_text().replace("%", "%%"))
