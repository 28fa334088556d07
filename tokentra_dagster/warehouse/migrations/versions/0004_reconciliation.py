"""Names, aliases, exchange rates and local days (specification section 2, corrections 5, 43)."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.get_bind().exec_driver_sql((Path(__file__).parent.parent / "reconciliation.sql").read_text().replace("%", "%%"))
