"""Retention: what has expired, and the history of expiring (corrections 2 and 4)."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.get_bind().exec_driver_sql((Path(__file__).parent.parent / "retention.sql").read_text().replace("%", "%%"))
