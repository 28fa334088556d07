"""The function that the analytics read, and the stored functions as they are now (docs/functions.md).

Functions hold no data: this makes all of them anew, so that a database of an older version gets the faster ones too.
"""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"

FILES = ("functions_parts.sql", "functions_usage.sql", "functions_reports.sql", "functions_frame.sql")


def upgrade() -> None:
    for name in FILES:
        op.get_bind().exec_driver_sql((Path(__file__).parent.parent / name).read_text().replace("%", "%%"))
    op.execute("DROP FUNCTION IF EXISTS marts.latency_counts_of(TEXT)")
