"""Usage events as they arrive, and which of them are not yet records (correction 34, docs/decisions/0012)."""

from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.get_bind().exec_driver_sql((Path(__file__).parent.parent / "usage_events.sql").read_text().replace("%", "%%"))
