"""The collector: keys of organisations, and a role that may store events and nothing else (docs/decisions/0018)."""

from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.get_bind().exec_driver_sql((Path(__file__).parent.parent / "collector.sql").read_text().replace("%", "%%"))
