"""Events become batches of the tables that they are about: pure, without a server."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from syncline.capture.outbox.expand import Entity, Expanded, complete, entity_hash, expand
from syncline.change import Batch, Column, Op, TableSchema, arrow_type, make_batch
from syncline.masks import unpacked_masks

EVENTS = TableSchema(
    "syncline_outbox",
    "sync_event_log",
    tuple(
        Column(name, kind, kind, key=name == "id")
        for name, kind in (
            ("id", "int8"),
            ("event_id", "text"),
            ("event_type", "text"),
            ("entity_type", "text"),
            ("entity_id", "text"),
            ("payload", "json"),
        )
    ),
)
CONCEPT = TableSchema(
    "academy",
    "concepts",
    (
        Column("concept_id", "text", "text", key=True),
        Column("title", "text", "text"),
        Column("difficulty", "int2", "smallint"),
        Column("price", "numeric(8,2)", "numeric(8,2)"),
        Column("tags", "text", "text[]"),
        Column("extra", "json", "jsonb"),
        Column("at", "timestamptz", "timestamp with time zone"),
    ),
)
RELATION = TableSchema(
    "academy",
    "relations",
    (
        Column("concept_id", "text", "text", key=True),
        Column("other_id", "int4", "integer", key=True),
        Column("strength", "float4", "real"),
    ),
)
USER = TableSchema("academy", "users", (Column("user_id", "int8", "bigint", key=True), Column("name", "text", "text")))
ENTITIES = {
    "concept": Entity(CONCEPT, frozenset({"id"})),
    "relates": Entity(RELATION),
    "user": Entity(USER),
    "unwanted": None,
}
FULL = {
    "title": "A",
    "difficulty": 1,
    "price": "9.5",
    "tags": ["x", "y z"],
    "extra": {"n": 1},
    "at": "2025-01-02T03:04",
}

NESTED = '{"extra": ' + "[" * 100_000 + "]" * 100_000 + "}"


def events(*given: tuple[str, str, object, object]) -> Batch:
    """A batch of events: type, entity type, entity id, payload; a version each. A text is JSON as it is."""
    rows = [
        (n, f"e{n}", kind, entity, *(part if isinstance(part, str) else json.dumps(part) for part in (key, payload)))
        for n, (kind, entity, key, payload) in enumerate(given)
    ]
    columns = [
        pa.array(values, arrow_type(c.type)) for values, c in zip(zip(*rows, strict=True), EVENTS.columns, strict=True)
    ]
    n = len(rows)
    return make_batch(
        EVENTS,
        columns,
        op=pa.array([Op.INSERT] * n, pa.int8()),
        version=pa.array(range(100, 100 + n), pa.int64()),
        ordinal=pa.array([0] * n, pa.int64()),
        commit_time=pa.array([0] * n, pa.timestamp("us", "UTC")),
        xid=pa.array(range(700, 700 + n), pa.int64()),
    )


def only(found: Expanded) -> Batch:
    assert [p.reason for p in found.parked] == []
    (batch,) = found.batches
    return batch


def unchanged(batch: Batch) -> list[list[str]]:
    names = [c.name for c in batch.schema.columns]
    return [
        [n for n, u in zip(names, row, strict=True) if u]
        for row in unpacked_masks(batch.system("unchanged"), batch.schema)
    ]


def test_each_of_the_eight_kinds_of_events_is_a_change_of_the_right_table() -> None:
    found = expand(
        events(
            ("CONTENT_CREATED", "concept", "c1", FULL),
            ("CONTENT_UPDATED", "concept", "c1", {"title": "B"}),
            ("CONTENT_DELETED", "concept", "c1", {}),
            ("RELATIONSHIP_CREATED", "relates", ["c1", "2"], {"strength": 0.5}),
            ("RELATIONSHIP_DELETED", "relates", ["c1", "2"], {}),
            ("USER_CREATED", "user", "7", {"name": "N"}),
            ("USER_UPDATED", "user", "7", {"name": "M"}),
            ("USER_DELETED", "user", "7", {}),
        ),
        ENTITIES,
    )
    assert not found.parked
    ops = {b.schema.name: [Op(op).name for op in b.ints("op")] for b in found.batches}
    assert ops == {
        "concepts": ["INSERT", "UPDATE", "DELETE"],
        "relations": ["INSERT", "DELETE"],
        "users": ["INSERT", "UPDATE", "DELETE"],
    }
    versions = {b.schema.name: b.ints("version").tolist() for b in found.batches}
    assert versions == {"concepts": [100, 101, 102], "relations": [103, 104], "users": [105, 106, 107]}
    assert found.batches[2].rows.column("user_id").to_pylist() == [7, 7, 7]


def test_fields_become_the_values_that_the_column_would_have_in_the_wal() -> None:
    row = only(expand(events(("CONTENT_CREATED", "concept", "c1", FULL)), ENTITIES)).data().to_pylist()[0]
    assert (row["price"], row["tags"], row["extra"]) == (
        pa.scalar("9.50").cast(pa.decimal128(8, 2)).as_py(),
        '{x,"y z"}',
        '{"n": 1}',
    )
    assert row["at"].isoformat() == "2025-01-02T03:04:00+00:00"


def test_a_patch_leaves_what_it_lacks_unchanged_and_null_is_a_value() -> None:
    batch = only(expand(events(("CONTENT_UPDATED", "concept", "c1", {"title": None, "id": "c1"})), ENTITIES))
    assert unchanged(batch) == [["difficulty", "price", "tags", "extra", "at"]]
    assert batch.data().to_pylist()[0]["title"] is None


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (("CONTENT_UPDATED", "concept", "c1", {"titel": "x"}), "no column for field titel"),
        (("CONTENT_UPDATED", "concept", "c1", {"difficulty": "hard"}), "column difficulty takes smallint"),
        (("CONTENT_UPDATED", "concept", "c1", {"difficulty": 70000}), "column difficulty takes smallint"),
        (("CONTENT_UPDATED", "concept", "c1", {"difficulty": True}), "column difficulty takes smallint"),
        (("CONTENT_UPDATED", "concept", "c1", {"price": "much"}), "column price takes numeric"),
        (("CONTENT_UPDATED", "concept", "c1", {"at": "soon"}), "column at takes timestamp"),
        (("CONTENT_UPDATED", "concept", "c1", {"at": 1700000000}), "as a text only"),
        (("CONTENT_UPDATED", "concept", "c1", {"title": {"de": "x"}}), "column title takes text"),
        (("CONTENT_UPDATED", "concept", "c1", {"concept_id": "c2"}), "names another entity"),
        (("CONTENT_UPDATED", "concept", "c1", [1]), "payload is no object"),
        (("CONTENT_UPDATED", "concept", "c1", NESTED), "nested too deeply"),
        (("RELATIONSHIP_CREATED", "relates", "c1", {}), "JSON list of 2 texts"),
        (("RELATIONSHIP_CREATED", "relates", ["c1", "x"], {}), "column other_id takes integer"),
        (("CONTENT_UPDATED", "invoice", "1", {}), "names no table"),
        (("CONTENT_EATEN", "concept", "c1", {}), "event type is unknown"),
    ],
)
def test_an_event_that_is_no_change_is_parked_with_its_reason_and_stops_nobody(event: Any, said: str) -> None:
    found = expand(events(event, ("USER_CREATED", "user", "1", {"name": "N"})), ENTITIES)
    (parked,) = found.parked
    assert said in parked.reason
    assert (parked.code, parked.event_id, parked.version) == ("SL-EVENT", "e0", 100)
    assert [b.schema.name for b in found.batches] == ["users"]


def test_patches_of_a_parked_entity_park_behind_it_until_a_whole_row_supersedes_them() -> None:
    bad = ("CONTENT_UPDATED", "concept", "c1", {"difficulty": "hard"})
    patch = ("CONTENT_UPDATED", "concept", "c1", {"title": "x"})
    other = ("CONTENT_UPDATED", "concept", "c2", {"title": "x"})
    found = expand(events(bad, patch, other, ("CONTENT_DELETED", "concept", "c1", {}), patch), ENTITIES)
    assert [(p.event_id, p.code) for p in found.parked] == [("e0", "SL-EVENT"), ("e1", "SL-PARKED-KEY")]
    assert found.superseded == {entity_hash("concept", "c1"): 103}
    assert found.batches[0].rows.column("concept_id").to_pylist() == ["c2", "c1", "c1"]


def test_an_entity_that_was_parked_before_blocks_its_patches_only() -> None:
    blocked = frozenset({entity_hash("concept", "c1")})
    patch = ("CONTENT_UPDATED", "concept", "c1", {"title": "x"})
    found = expand(events(patch, ("CONTENT_CREATED", "concept", "c1", FULL)), ENTITIES, blocked)
    assert [p.code for p in found.parked] == ["SL-PARKED-KEY"]
    assert len(only(Expanded(found.batches))) == 1


def test_events_of_an_entity_type_that_is_passed_over_are_nowhere() -> None:
    assert expand(events(("CONTENT_CREATED", "unwanted", "1", {"x": 1})), ENTITIES) == Expanded()


def test_a_created_row_with_some_columns_is_made_whole_from_the_source() -> None:
    batch = only(
        expand(
            events(
                ("USER_CREATED", "user", "1", {}),
                ("USER_CREATED", "user", "2", {"name": "B"}),
                ("USER_CREATED", "user", "3", {}),
                ("USER_UPDATED", "user", "4", {}),
            ),
            ENTITIES,
        )
    )
    asked: list[Any] = []

    def read(schema: TableSchema, keys: pa.RecordBatch, xids: Any) -> pa.RecordBatch:
        asked.append((keys.to_pylist(), xids))
        return pa.RecordBatch.from_arrays([pa.array([3], pa.int64()), pa.array(["C"])], names=["user_id", "name"])

    whole = complete(batch, read)
    assert asked == [([{"user_id": 1}, {"user_id": 3}], [700, 702])]
    assert whole.rows.column("user_id").to_pylist() == [2, 3, 4]  # 1 is gone again
    assert whole.rows.column("name").to_pylist() == ["B", "C", None]
    assert unchanged(whole) == [[], [], ["name"]]
