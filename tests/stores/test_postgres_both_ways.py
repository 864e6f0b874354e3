"""Changes that say what they rest on are written only where the row still is that, decided by the server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest
from pg_target import opened

from servers import Database, eventually
from syncline.change import Column, Cursor, Position, TableSchema
from syncline.errors import Rejected
from syncline.stores import Folded, TableWork, Work
from syncline.stores.postgres import PostgresStore

SCHEMA = TableSchema(
    "public", "player", (Column("id", "text", "text", key=True), Column("score", "numeric(8,2)", "numeric(8,2)"))
)
Row = str | None


class Proposals:
    """Changes of rows with one value."""

    def __init__(self, database: Database, store: PostgresStore) -> None:
        self.database, self.store, self._n = database, store, 0

    def propose(self, key: str, base: Row, new: Row) -> str | None:
        """Apply one that rests on ``base`` (None: no row); what is there behind it."""
        self._n += 1
        texts = [None if row is None else {"id": key, "score": row} for row in (base, new)]
        bases = pa.record_batch([[key], [json.dumps(dict(zip(("base", "new"), texts, strict=True)))]], ["id", "bases"])
        if new is None:
            rows = Folded(deletes=pa.record_batch([[key], [self._n]], ["id", "version"]))
        else:
            score = pa.array([new]).cast(pa.decimal128(8, 2))
            rows = Folded(upserts=pa.record_batch([pa.array([key]), score, pa.array([self._n])], ["id", "score", "v"]))
        cursor = Cursor("edits", Position("log", self._n))
        self.store.apply(Work((TableWork(SCHEMA, rows, bases=bases),), cursor))
        found = self.database.execute("select score::text from player where id = %s", key)
        return found[0][0] if found else None


@pytest.fixture
def proposals(database: Database) -> Iterator[Proposals]:
    database.execute("create table player (id text primary key, score numeric, note text default 'kept')")
    database.execute("insert into player values ('a', 1.50)")
    with opened(database, SCHEMA, source="edits", origin=True) as store:
        yield Proposals(database, store)


def test_a_change_is_written_where_the_row_is_what_it_rests_on(proposals: Proposals) -> None:
    assert proposals.propose("a", "1.5", "2") == "2.00"
    assert proposals.propose("b", None, "3") == "3.00"
    assert proposals.propose("a", "2", None) is None
    assert proposals.store.overruled == 0
    assert proposals.database.value("select note from player where id = 'b'") == "kept"


def test_a_change_that_rests_on_something_else_loses_and_is_counted(proposals: Proposals) -> None:
    assert proposals.propose("a", "1", "2") == "1.50"
    assert proposals.propose("a", None, "2") == "1.50"
    assert proposals.propose("a", "1", None) == "1.50"
    assert proposals.propose("b", "1", "2") is None
    assert proposals.store.overruled == 4


def test_a_change_to_what_is_there_already_is_neither_written_nor_counted(proposals: Proposals) -> None:
    before = proposals.database.value("select xmin::text from player")
    assert proposals.propose("a", "1", "1.5") == "1.50"
    assert proposals.propose("b", "1", None) is None
    assert proposals.store.overruled == 0
    assert proposals.database.value("select xmin::text from player") == before


@pytest.mark.parametrize(
    ("base", "bad"),
    [(None, "-1"), ("1.5", "-1"), (None, "999999.99"), ("1.5", "999999.99")],
    ids=["new against a constraint", "against a constraint", "new and too large", "too large"],
)
def test_a_change_that_is_refused_and_parked_holds_up_no_other(proposals: Proposals, base: Row, bad: str) -> None:
    proposals.database.execute("alter table player alter score type numeric(5,2), add check (score >= 0)")
    proposals.database.execute("insert into player values ('c', 1), ('d', 1)")
    key = "b" if base is None else "a"
    pairs = {key: (base, bad), "c": ("1", "2"), "d": ("3", "2")}
    texts = [
        json.dumps({w: r and {"id": k, "score": r} for w, r in zip(("base", "new"), p, strict=True)})
        for k, p in pairs.items()
    ]
    bases = pa.record_batch([list(pairs), texts], ["id", "bases"])
    scores = pa.array([new for _, new in pairs.values()]).cast(pa.decimal128(8, 2))
    rows = pa.record_batch([pa.array(list(pairs)), scores, pa.array([1, 1, 1])], ["id", "score", "version"])
    cursor = Cursor("edits", Position("log", 1))
    with pytest.raises(Rejected) as refused:
        proposals.store.apply(Work((TableWork(SCHEMA, Folded(upserts=rows), bases=bases),), cursor))
    assert list(refused.value.rows) == [0]
    # As the worker goes on: the refused row is parked, and what the others rest on still holds.
    proposals.store.apply(Work((TableWork(SCHEMA, Folded(upserts=rows.slice(1)), bases=bases),), cursor))
    found = dict(proposals.database.execute("select id, score::text from player"))
    assert found == {"a": "1.50", "c": "2.00", "d": "1.00"}
    assert proposals.store.overruled == 1


@pytest.mark.parametrize(
    ("statement", "base", "left"),
    [
        ("update player set score = 7 where id = 'a'", "1.5", "7"),
        ("delete from player where id = 'a'", "1.5", None),
        ("insert into player values ('b', 7)", None, "7"),
    ],
)
def test_an_edit_that_is_not_committed_yet_is_waited_for(
    proposals: Proposals, statement: str, base: Row, left: Row
) -> None:
    key, found = ("b" if base is None else "a"), []
    with proposals.database.connect(autocommit=False) as writer:
        writer.execute(statement.encode())
        thread = threading.Thread(target=lambda: found.append(proposals.propose(key, base, "2")))
        thread.start()
        waiting = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        eventually(lambda: proposals.database.value(waiting) == 1)
        writer.commit()
    thread.join(30)
    assert found == [left]
    assert proposals.store.overruled == 1
