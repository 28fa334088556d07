"""The sum of latency histograms, from which metrics read percentiles (specification 1.4; correction 6)."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    statements = (Path(__file__).parent.parent / "latency_metrics.sql").read_text()
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
