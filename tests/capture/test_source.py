"""What an error of PostgreSQL becomes: a message that says where and what, and neither secrets nor row values."""

from __future__ import annotations

import pytest

from servers import Database
from syncline.capture.source import connect, translated
from syncline.errors import Misconfigured


@pytest.mark.parametrize(
    "dsn", ["postgres//bob:hunter2@host/shop", "postgresql://bob:hunter2%zz@host/shop", "host=host hunter2"]
)
def test_a_connection_string_that_cannot_be_read_is_not_repeated(dsn: str) -> None:
    with pytest.raises(Misconfigured, match=r"source\.dsn can't be read") as caught:
        connect(dsn)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "statement",
    [
        "select 'hunter2'::int",
        "select ('hunter2')::timestamptz",
        "do $$ begin raise exception 'row hunter2 is odd'; end $$",
        "create temp table t (v text check (v <> 'hunter2')); insert into t values ('hunter2')",
    ],
)
def test_a_message_of_the_server_that_quotes_a_value_is_not_repeated(database: Database, statement: str) -> None:
    with pytest.raises(Misconfigured) as caught, translated(database.dsn), database.connect() as connection:
        connection.execute(statement)
    assert "hunter2" not in str(caught.value)
    assert database.name in str(caught.value)
