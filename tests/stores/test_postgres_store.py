"""The PostgreSQL store passes the suite of its contract, against a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from servers import TEMPLATE, drop_database
from syncline.embedded import EmbeddedPostgres
from syncline.stores.postgres import PostgresConfig, PostgresStore
from syncline.testing.store_suite import MakeStore, StoreConformance


class TestPostgresStore(StoreConformance):
    refused = (2,)  # the others are values to PostgreSQL

    @pytest.fixture
    def make_store(self, postgres: EmbeddedPostgres) -> Iterator[MakeStore]:
        """Each name is a database of its own."""
        made: set[str] = set()

        def make(name: str) -> PostgresStore:
            if name not in made:
                made.add(name)
                postgres.create_database(name, TEMPLATE)
            return PostgresStore(PostgresConfig(dsn=SecretStr(postgres.dsn(name))), name)

        yield make
        for name in made:
            drop_database(postgres, name)
