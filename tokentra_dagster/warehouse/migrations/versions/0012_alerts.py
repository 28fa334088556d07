"""Alerts: what was raised, to whom it went, who knows, and what is quiet for a while (docs/alerts.md, docs/decisions/0017)."""

from pathlib import Path

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.get_bind().exec_driver_sql((Path(__file__).parent.parent / "alerts.sql").read_text().replace("%", "%%"))
