"""Values of chunks as PostgreSQL itself prints them."""

from __future__ import annotations

import json
import random

import pytest

from servers import Database
from syncline.capture.outbox.fields import Unfit
from syncline.capture.stream.texts import printed
from syncline.change import Column


@pytest.mark.parametrize("kind", ["real[]", "double precision[]"])
def test_lists_of_floats_are_printed_as_postgresql_prints_them(database: Database, kind: str) -> None:
    some = random.Random(7)
    values = [some.uniform(-1, 1) * 10.0 ** some.randrange(-9, 20) for _ in range(2000)]
    values += [0.0, -0.0, 1.0, 999999.5, 1e6, 123456.7, 1e-4, 9.9e-5, 16777216.0, 1e14, 1e15, 75137694.02687243]
    theirs = database.value(f"select %s::{kind}::text", "{" + ",".join(map(repr, values)) + "}")
    assert printed(json.dumps(values).encode(), Column("c", "text", kind)) == theirs


@pytest.mark.parametrize(
    "text",
    [
        '{"values": [1, 0.50], "indices": [1e2, 1E-3, -0, -0.0], "a": {"b": null, "aa": true, "b": false}}',
        '"\\u00e9\\n\\"\\\\ \\u001f/"',
        "[]",
        "123456789012345678901234567890.10",
    ],
)
def test_jsonb_is_printed_as_postgresql_prints_it(database: Database, text: str) -> None:
    assert printed(text.encode(), Column("c", "json", "jsonb")) == database.value("select %s::jsonb::text", text)


@pytest.mark.parametrize(("raw", "kind"), [("[1e39]", "real[]"), ('["x"]', "real[]"), ('"\\u0000"', "jsonb")])
def test_what_postgresql_would_refuse_is_unfit(raw: str, kind: str) -> None:
    with pytest.raises(Unfit):
        printed(raw.encode(), Column("c", "text", kind))
