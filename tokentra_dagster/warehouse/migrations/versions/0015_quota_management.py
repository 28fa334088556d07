"""Quotas in operation: corrections of counters are kept, refusals expire into counts, readers see their own (docs/quotas.md)."""

from pathlib import Path

from alembic import op

revision = "0015"
down_revision = "0012"


def upgrade() -> None:
    op.get_bind().exec_driver_sql((Path(__file__).parent.parent / "quota_management.sql").read_text().replace("%", "%%"))
