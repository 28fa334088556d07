"""Quotas: versions of what people set, periods, events, status (specification 2.4, 2.5, 2.7 and 8; corrections 27 to 30)."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for name in ("quota_versions", "quota_periods", "quota_status"):
        statements = (Path(__file__).parent.parent / f"{name}.sql").read_text()
        op.get_bind().exec_driver_sql(statements.replace("%", "%%"))
