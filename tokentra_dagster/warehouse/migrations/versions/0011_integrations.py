"""Connections say which integration reads them, so that a gateway can tell a provider's usage."""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.get_bind().exec_driver_sql((Path(__file__).parent.parent / "integrations.sql").read_text().replace("%", "%%"))
