"""Scheduled exports: what is due when, what came of each due time, and every attempt (docs/exports-scheduled.md, docs/decisions/0015)."""

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.get_bind().exec_driver_sql((Path(__file__).parent.parent / "scheduled_exports.sql").read_text().replace("%", "%%"))
