"""Access: group roles, row-level security for readers, and whose rows a reader sees."""

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.get_bind().exec_driver_sql((Path(__file__).parent.parent / "access.sql").read_text().replace("%", "%%"))
