"""Reading a copy from outside: the same through the engine's door as from the file."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from piped import Pipeline

from servers import eventually
from syncline.config import TargetConfig
from syncline.errors import Misconfigured
from syncline.verify import verify
from syncline.verify.point import open_copy


def seen(pipeline: Pipeline) -> dict[str, Any]:
    """Everything that the contract of a reader offers."""
    reader = open_copy(pipeline.config.targets["main"])
    try:
        cursor, schema = reader.cursor("main"), reader.recorded("public.items")
        assert cursor is not None
        assert schema is not None
        rows = pa.Table.from_batches(list(reader.scan(schema))).sort_by("id")
        buried = reader.buried(schema, 0)
        later = reader.buried(schema, cursor.base + cursor.place + 1)
        truncated, horizon = reader.swept("public.items")
        return {
            "columns": rows.schema.names,
            "types": [str(t) for t in rows.schema.types],
            "rows": rows.drop_columns("version").to_pylist(),
            "versions": all(0 < v < cursor.through for v in rows["version"].to_pylist()),
            "buried": buried.drop_columns("version").to_pylist(),
            "later": later.num_rows,
            "swept": (0 < truncated < cursor.through, horizon),
            "unknown": (reader.cursor("other"), reader.recorded("public.other"), reader.swept("public.other")),
        }
    finally:
        reader.close()
        reader.close()


def test_door_and_file_show_the_same(pipeline: Pipeline) -> None:
    pipeline.database.execute("create table items (id uuid primary key, n numeric(6,2), at timestamptz)")
    with pipeline.running():
        one, two = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
        pipeline.database.execute("insert into items values (%s, 1.5, '2026-01-01'), (%s, null, null)", one, two)
        pipeline.database.execute("delete from items where id = %s", two)
        eventually(lambda: verify(pipeline.config).tables[0].rows == 1)
        through_the_door = seen(pipeline)
    assert seen(pipeline) == through_the_door
    assert through_the_door["columns"] == ["id", "n", "at", "version"]
    assert through_the_door["types"] == ["fixed_size_binary[16]", "decimal128(6, 2)", "timestamp[us, tz=UTC]", "int64"]
    assert [str(r["n"]) for r in through_the_door["rows"]] == ["1.50"]
    assert through_the_door["versions"]
    assert through_the_door["buried"] == [{"id": b"\0" * 15 + b"\x02"}]
    assert through_the_door["later"] == 0
    assert through_the_door["swept"] == (True, 0)
    assert through_the_door["unknown"] == (None, None, (0, 0))


def test_a_target_that_nobody_can_read_from_outside_says_so() -> None:
    target = TargetConfig.model_validate({"type": "memory"})
    with pytest.raises(Misconfigured, match="memory"):
        open_copy(target)


def test_a_copy_that_is_not_there_yet_says_so(pipeline: Pipeline) -> None:
    with pytest.raises(Misconfigured, match="no DuckDB file"):
        open_copy(pipeline.config.targets["main"])
