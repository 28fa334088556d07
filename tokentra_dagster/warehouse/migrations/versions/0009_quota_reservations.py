"""Quotas are checked and reserved before a request (correction 31, docs/quotas.md)."""

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"

FILES = ("quota_counters.sql", "quota_reservations.sql", "quota_calls.sql")


def upgrade() -> None:
    for name in FILES:
        op.get_bind().exec_driver_sql((Path(__file__).parent.parent / name).read_text().replace("%", "%%"))
