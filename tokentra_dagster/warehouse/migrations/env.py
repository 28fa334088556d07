"""Alembic's entry: every migration runs in one transaction on the database given by the caller."""

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

url = (
    context.config.attributes["url"]
    .replace("postgres://", "postgresql://", 1)
    .replace("postgresql://", "postgresql+psycopg://", 1)
)
engine = create_engine(url, poolclass=NullPool)
with engine.connect() as connection:
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS app"))
    connection.commit()
    context.configure(connection=connection, version_table_schema="app", transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
