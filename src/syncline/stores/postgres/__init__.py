"""The PostgreSQL store: rows kept in step in place, beside whatever else stands in the database."""

from syncline.stores.postgres.server import PostgresConfig
from syncline.stores.postgres.store import PostgresStore

__all__ = ["PostgresConfig", "PostgresStore"]
