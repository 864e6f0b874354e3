"""What a row of a table becomes, as requests that people know: for `syncline mapping show`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from syncline.change import TableSchema
from syncline.stores.qdrant.names import DELETED, VERSION, collection_of
from syncline.stores.qdrant.tables import vectors_of, wanted_spec

__all__ = ["requests"]


def requests(schema: TableSchema) -> Iterator[str]:
    """The collection, its indexes, the point of a row with columns in braces, and what is left of a deleted one.

    Raises:
        Misconfigured: the table's shape is none for points.
    """
    collection, spec, vectors = collection_of(schema), wanted_spec(schema), vectors_of(schema)
    dense = {name: {"size": d.size, "distance": d.distance.capitalize()} for name, d in spec.dense.items()}
    yield _request(
        f"/collections/{collection}", {"vectors": dense, "sparse_vectors": {n: {} for n in sorted(spec.sparse)}}
    )
    for field, kind in spec.indexes.items():
        yield _request(f"/collections/{collection}/index", {"field_name": field, "field_schema": kind})
    held = {vector.column for vector in vectors}
    payload = {column.name: f"{{{column.name}}}" for column in schema.columns if column.name not in held}
    point = {
        "id": "{" + ", ".join(column.name for column in schema.key) + "}",
        "vector": {vector.name: f"{{{vector.column}}}" for vector in vectors},
        "payload": {**payload, VERSION: "{version}"},
    }
    guard = {"must_not": [{"key": VERSION, "range": {"gt": "{version}"}}]}
    points = f"/collections/{collection}/points?wait=true"
    yield _request(points, {"points": [point], "update_filter": guard})
    buried = {"id": point["id"], "vector": {}, "payload": {VERSION: "{version}", DELETED: True}}
    yield _request(points, {"points": [buried], "update_filter": guard})


def _request(path: str, body: dict[str, Any]) -> str:
    return f"PUT {path} {json.dumps(body, ensure_ascii=False)}"
