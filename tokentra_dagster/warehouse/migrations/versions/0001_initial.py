"""The first schema (specification section 2, corrections 1, 2, 8, 10, 11)."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.get_bind().exec_driver_sql((Path(__file__).parent.parent / "initial.sql").read_text().replace("%", "%%"))
