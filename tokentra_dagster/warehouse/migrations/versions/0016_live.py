"""The last minutes of usage, live (docs/live.md, docs/decisions/0019)."""

from pathlib import Path

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.get_bind().exec_driver_sql((Path(__file__).parent.parent / "live.sql").read_text().replace("%", "%%"))
