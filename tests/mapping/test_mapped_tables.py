"""Mapping a table: which columns, rows and shapes come out, and what is refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from syncline.change import Column, TableSchema, arrow_type
from syncline.errors import Misconfigured, Rejected
from syncline.mapping import FORMS, Facts, ForeignKey, MappedTable, TargetMapping
from syncline.shape import Document, End, Hash, Keys, Members, Node, Point, Reference, Relationship, Rows, Vector

DOCUMENT = TableSchema(
    "public",
    "documents",
    (
        Column("id", "int8", "bigint", key=True),
        Column("title", "text", "text"),
        Column("lang", "text", "text"),
        Column("author_id", "int8", "bigint"),
        Column("tags", "text", "text[]"),
        Column("dense", "text", "real[]"),
        Column("price", "numeric(10,2)", "numeric(10,2)"),
    ),
)
AUTHOR = TableSchema("public", "authors", (Column("id", "int8", "bigint", key=True), Column("name", "text", "text")))
TAGGED = TableSchema(
    "public",
    "document_tags",
    (
        Column("document_id", "int8", "bigint", key=True),
        Column("author_id", "int8", "bigint", key=True),
        Column("weight", "float8", "double precision"),
    ),
)
FACTS = {
    "public.documents": Facts(DOCUMENT, (ForeignKey(("author_id",), "public.authors", ("id",)),)),
    "public.authors": Facts(AUTHOR),
    "public.document_tags": Facts(
        TAGGED,
        (
            ForeignKey(("document_id",), "public.documents", ("id",)),
            ForeignKey(("author_id",), "public.authors", ("id",)),
        ),
    ),
}


def mapping(form: str, **tables: Any) -> TargetMapping:
    settings = {f"public.{name}": FORMS[form].model_validate(given) for name, given in tables.items()}
    return TargetMapping(settings, FACTS, FORMS[form])


def mapped(form: str, table: TableSchema = DOCUMENT, **tables: Any) -> MappedTable:
    return mapping(form, **tables).table(table)


def rows(*values: tuple[Any, ...]) -> pa.RecordBatch:
    arrays = [
        pa.array([row[i] for row in values], arrow_type(column.type)) for i, column in enumerate(DOCUMENT.columns)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=[c.name for c in DOCUMENT.columns])


ONE = (1, "One", "en", 7, "{a,b}", "{0.5,1}", None)
TWO = (2, "Two", "de", None, '{"x, y","q\\"q"}', "{1,2}", None)


def test_without_settings_rows_stay_what_they_are() -> None:
    assert TargetMapping(None, FACTS, FORMS["rows"]).table(DOCUMENT).trivial
    assert TargetMapping(None, FACTS, FORMS["rows"]).table(DOCUMENT).digest == ""


def test_columns_are_picked_and_renamed_and_the_key_always_is_there() -> None:
    table = mapped("rows", documents={"columns": {"title": "heading"}, "constants": {"system": "cms", "rank": 3}})
    assert [(c.name, c.type) for c in table.schema.columns] == [
        ("id", "int8"),
        ("heading", "text"),
        ("system", "text"),
        ("rank", "int8"),
    ]
    assert table.whole(rows(ONE, TWO)).rows.to_pylist() == [
        {"id": 1, "heading": "One", "system": "cms", "rank": 3},
        {"id": 2, "heading": "Two", "system": "cms", "rank": 3},
    ]


def test_excluded_columns_are_left_out() -> None:
    table = mapped("rows", documents={"exclude": ["tags", "dense", "price"]})
    assert [c.name for c in table.schema.columns] == ["id", "title", "lang", "author_id"]


def test_rows_that_do_not_meet_the_condition_are_gone() -> None:
    whole = mapped("rows", documents={"where": "lang = 'en'"}).whole(rows(TWO, ONE, (3, "x", None, *ONE[3:])))
    assert whole.rows.column("id").to_pylist() == [1]
    assert whole.taken is not None
    assert whole.taken.to_pylist() == [1]
    assert whole.gone is not None
    assert whole.gone.to_pylist() == [0, 2]


def test_sql_makes_columns_and_leaves_rows_out() -> None:
    query = "select id, upper(title) as loud, length(title) as size from batch where lang = 'en' -- end"
    table = mapped("rows", documents={"transform": query})
    assert [(c.name, c.type) for c in table.schema.columns] == [("id", "int8"), ("loud", "text"), ("size", "int8")]
    whole = table.whole(rows(TWO, ONE))
    assert whole.rows.to_pylist() == [{"id": 1, "loud": "ONE", "size": 3}]
    assert whole.gone is not None
    assert whole.gone.to_pylist() == [0]


def shout(batch: pa.Table) -> pa.Table:
    """Reverses the rows, and fails on one of them."""
    if 13 in batch.column("id").to_pylist():
        raise ZeroDivisionError
    return batch.select(["id", "title"]).take(pa.array(range(batch.num_rows - 1, -1, -1), pa.int64()))


def test_python_transforms_may_change_the_order_and_its_failures_are_found() -> None:
    table = mapped("rows", documents={"transform": f"{__name__}:shout"})
    whole = table.whole(rows(ONE, TWO))
    assert whole.taken is not None
    assert list(zip(whole.taken.to_pylist(), whole.rows.column("title").to_pylist(), strict=True)) == [
        (1, "Two"),
        (0, "One"),
    ]
    with pytest.raises(Rejected) as refused:
        table.whole(rows(ONE, (13, *ONE[1:]), TWO))
    assert refused.value.rows == (1,)
    assert "ZeroDivisionError" in refused.value.reason


def same_key(batch: pa.Table) -> pa.Table:
    return batch.set_column(0, "id", pa.array([1] * batch.num_rows, pa.int64()))


def test_a_transform_that_changes_keys_stops() -> None:
    with pytest.raises(Misconfigured, match="changed keys"):
        mapped("rows", documents={"transform": f"{__name__}:same_key"}).whole(rows(ONE, TWO))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"columns": ["titel"]}, "no column titel"),
        ({"exclude": ["id"]}, "part of its key"),
        ({"columns": {"title": "lang", "lang": None}}, "called lang"),
        ({"where": "nothing = 1"}, "`where`"),
        ({"transform": "select title from batch"}, "leaves out key column id"),
        ({"transform": "select id, {'a': 1} as odd from batch"}, "of type struct"),
        ({"transform": "no_such_module:f"}, "can't be loaded"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        mapped("rows", documents=settings)


def test_values_take_another_form_or_are_refused_one_by_one() -> None:
    forms = {"columns": {"tags": {"as": "texts"}, "dense": {"as": "vector", "name": "v"}}}
    table = mapped("rows", documents=forms)
    whole = table.whole(rows(ONE, TWO, (3, None, None, None, None, "{}", None)))
    assert whole.rows.to_pylist() == [
        {"id": 1, "tags": ["a", "b"], "v": [0.5, 1.0]},
        {"id": 2, "tags": ["x, y", 'q"q'], "v": [1.0, 2.0]},
        {"id": 3, "tags": None, "v": []},
    ]
    with pytest.raises(Rejected) as refused:
        table.whole(rows(ONE, (2, "t", "en", 1, "{{a},{b}}", "{1}", None), (3, "t", "en", 1, "{a}", "{x}", None)))
    assert refused.value.rows == (1, 2)


def test_no_list_at_all_is_no_list_that_is_wrong() -> None:
    table = mapped("points", documents={"vectors": {"v": {"column": "dense", "size": 2}}})
    missing = (1, "t", "en", 1, None, None, None)
    assert table.whole(rows(missing)).rows["dense"].to_pylist() == [None]
    assert table.whole(rows(missing).slice(0, 0)).rows.num_rows == 0
    with pytest.raises(Rejected) as refused:
        table.whole(rows((*missing[:5], "{}", None), (2, *missing[1:5], "{1,NULL}", None)))
    assert list(refused.value.rows) == [1]


def test_partial_rows_keep_their_mask_under_new_names() -> None:
    table = mapped("rows", documents={"columns": {"lang": "language", "title": None}})
    mask = np.zeros((2, 7), np.bool_)
    mask[0, 1] = True
    batch, unchanged = table.partials(rows((1, None, *ONE[2:]), TWO), mask)
    assert batch.schema.names == ["id", "title", "language"]
    assert unchanged.tolist() == [[False, True, False], [False, False, False]]


def test_what_a_mapping_computes_with_has_to_be_there() -> None:
    mask = np.zeros((3, 7), np.bool_)
    mask[0, 1], mask[1, 2], mask[2, 5] = True, True, True
    assert mapped("rows", documents={"where": "LANG = 'en'"}).incomplete(mask).tolist() == [False, True, False]
    assert mapped("rows", documents={"transform": "select * from batch"}).incomplete(mask).all()
    assert not mapped("rows", documents={}).incomplete(mask).any()


# ------------------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("condition", "needed"),
    [
        ("lang = 'en' and length(TITLE) > 2", {"title", "lang"}),
        ("batch.lang = 'title'", {"lang"}),
        ("#2 like '%x%'", None),
        ("batch::text like '%x%'", None),
        ("columns('^tit') like '%x%'", None),
        ("id in (select max(id) from batch)", None),
        ("columns(*) is not null", None),
    ],
)
def test_a_condition_needs_the_columns_that_it_is_computed_from_however_it_names_them(
    condition: str, needed: set[str] | None
) -> None:
    table = mapped("rows", documents={"where": condition})
    names = [c.name for c in DOCUMENT.columns]
    for i, name in enumerate(names):
        mask = np.zeros((1, len(names)), np.bool_)
        mask[0, i] = True
        assert table.incomplete(mask).tolist() == [needed is None or name in needed], name


def test_a_column_with_quotes_in_its_name_is_needed_by_a_condition_on_it() -> None:
    odd = TableSchema("public", "odd", (Column("id", "int8", "bigint", key=True), Column('a"b', "text", "text")))
    settings = {"public.odd": FORMS["rows"].model_validate({"where": '"a""b" like \'%x%\''})}
    table = TargetMapping(settings, {"public.odd": Facts(odd)}, FORMS["rows"]).table(odd)
    assert table.incomplete(np.array([[False, True]])).tolist() == [True]


@pytest.mark.parametrize(
    "settings",
    [
        {"transform": "select id, lang::int as n from batch"},
        {"transform": f"{__name__}:whole_numbers"},
        {"columns": {"lang": {"as": "vector"}}},
    ],
)
def test_a_row_that_is_refused_behind_a_filter_is_the_one_that_is_named(settings: dict[str, Any]) -> None:
    table = mapped("rows", documents={**settings, "where": "id > 3"})
    good = "{1}" if "columns" in settings else "7"
    given = [(i, f"t{i}", "x" if i == 6 else good, *ONE[3:]) for i in (1, 5, 2, 6, 9)]
    with pytest.raises(Rejected) as refused:
        table.whole(rows(*given))
    assert list(refused.value.rows) == [3]


def whole_numbers(table: pa.Table) -> pa.Table:
    """Its column's type depends on the values."""
    return table.select(["id"]).append_column(
        "n",
        pa.array([int(v) if v != "x" else 0.5 for v in table["lang"].to_pylist()], None if len(table) else pa.int64()),
    )


@pytest.mark.parametrize(
    ("kind", "form"),
    [("uuid", "vector"), ("int8", "texts"), ("timestamptz", "text"), ("float8", "text"), ("date", "json")],
)
def test_forms_that_a_type_has_not_are_refused_before_anything_runs(kind: str, form: str) -> None:
    table = TableSchema("public", "odd", (Column("id", "int8", "bigint", key=True), Column("v", kind, kind)))
    settings = {"public.odd": FORMS["rows"].model_validate({"columns": {"v": {"as": form}}})}
    with pytest.raises(Misconfigured, match=f"is a {kind} and can't be `as: {form}`"):
        TargetMapping(settings, {"public.odd": Facts(table)}, FORMS["rows"]).table(table)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("uuid", bytes(range(16)), "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        ("bytes", b"\x00\xff", "\\x00ff"),
        ("numeric(20,9)", Decimal("0.000000001"), "0.000000001"),
        ("bool", True, "true"),
        ("int4", -5, "-5"),
    ],
)
def test_a_column_as_text_is_what_postgresql_prints(kind: str, value: object, text: str) -> None:
    table = TableSchema("public", "odd", (Column("id", "int8", "bigint", key=True), Column("v", kind, kind)))
    settings = {"public.odd": FORMS["rows"].model_validate({"columns": {"v": {"as": "text"}}})}
    given = [pa.array([1, 2], pa.int64()), pa.array([value, None], arrow_type(kind))]
    found = TargetMapping(settings, {"public.odd": Facts(table)}, FORMS["rows"]).table(table)
    assert found.whole(pa.RecordBatch.from_arrays(given, names=["id", "v"])).rows["v"].to_pylist() == [text, None]


def test_a_transform_may_be_written_over_several_lines() -> None:
    assert mapped("rows", documents={"transform": "select\nid\nfrom\nbatch\n"}).schema.columns[0].name == "id"
    assert mapped("rows", documents={"transform": f"{__name__}:shout\n"}).schema.columns[0].name == "id"


def test_keys_may_be_called_as_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("row", "made", "key0")
    table = TableSchema("public", "odd", tuple(Column(name, "int8", "bigint", key=True) for name in names))
    settings = {"public.odd": FORMS["rows"].model_validate({"transform": "select * from batch"})}
    batch = pa.RecordBatch.from_arrays([pa.array([1, 2], pa.int64())] * 3, names=list(names))
    found = TargetMapping(settings, {"public.odd": Facts(table)}, FORMS["rows"]).table(table).whole(batch)
    assert found.rows.to_pylist() == [dict.fromkeys(names, 1), dict.fromkeys(names, 2)]


def test_renamed_tables_and_soft_deletion_are_the_shape_of_rows() -> None:
    table = mapped("rows", documents={"table": "archive.papers", "soft_delete": "deleted_at"})
    assert table.schema.shape == Rows("archive", "papers", "deleted_at")
    assert table.schema.qualified == "public.documents"


def test_foreign_keys_become_relationships_of_nodes() -> None:
    table = mapped("graph", documents={"node": "Document", "columns": ["title"]}, authors={})
    reference = Reference("AUTHOR", End(("author_id",), "Authors", ("id",)))
    assert table.schema.shape == Node(("Document",), (reference,))
    assert [c.name for c in table.schema.columns] == ["id", "title", "author_id"]


def test_references_can_be_named_turned_and_left_out() -> None:
    told = {"references": {"author_id": {"type": "WROTE", "incoming": True}}}
    shape = mapped("graph", documents=told, authors={"node": "Person", "columns": {"id": "key"}}).schema.shape
    assert shape == Node(("Documents",), (Reference("WROTE", End(("author_id",), "Person", ("key",)), incoming=True),))
    assert mapped("graph", documents={"foreign_keys": False}, authors={}).schema.shape == Node(("Documents",))
    assert mapped("graph", documents={}).schema.shape == Node(("Documents",))  # its authors are not in this target


def test_a_join_table_becomes_relationships() -> None:
    edge = {"relationship": "TAGGED", "from": {"table": "public.documents"}, "to": {"table": "public.authors"}}
    shape = mapped("graph", TAGGED, document_tags=edge, documents={}, authors={}).schema.shape
    assert shape == Relationship(
        End(("document_id",), "Documents", ("id",)), End(("author_id",), "Authors", ("id",)), type="TAGGED"
    )
    with pytest.raises(Misconfigured, match="no node of this target"):
        mapped("graph", TAGGED, document_tags=edge, documents={})


def embedder(texts: list[str]) -> list[list[float]]:
    return [[float(len(text)), 1.0] for text in texts]


def test_points_have_vectors_of_columns_and_of_embedders() -> None:
    vectors = {
        "dense": {"column": "dense", "size": 2},
        "made": {"embed": f"{__name__}:embedder", "text": ["title"], "size": 2, "model": "m1"},
    }
    settings = {"vectors": vectors, "columns": {"dense": {"as": "vector"}, "title": None}, "indexes": {"title": "text"}}
    table = mapped("points", documents=settings)
    assert isinstance(table.schema.shape, Point)
    assert table.schema.shape.vectors == (
        Vector("dense", "dense", 2),
        Vector("made", "made", 2, digest="_embedded_made"),
    )
    (first, second) = table.whole(rows(ONE, (2, None, *ONE[2:]))).rows.to_pylist()
    assert first["dense"] == [0.5, 1.0]
    assert first["made"] is None
    assert first["_embedded_made"] is not None
    assert second["_embedded_made"] is None
    other = {**settings, "vectors": {**vectors, "made": {**vectors["made"], "model": "m2"}}}
    assert mapped("points", documents=other).digest != table.digest


def test_a_column_that_a_vector_is_taken_from_needs_no_form_of_its_own() -> None:
    vectors = {"v": {"column": "dense", "size": 2}, "words": {"column": "tags", "sparse": True}}
    table = mapped("points", documents={"vectors": vectors})
    assert {c.name: c.type for c in table.schema.columns if c.name in ("dense", "tags")} == {
        "dense": "vector",
        "tags": "sparse",
    }
    with pytest.raises(Misconfigured, match="can't be `as: texts`"):
        mapped("points", documents={"vectors": vectors, "columns": {"dense": {"as": "texts"}, "title": None}})
    with pytest.raises(Misconfigured, match=r"price of table public\.documents is a numeric"):
        mapped("points", documents={"vectors": {"v": {"column": "price", "size": 2}}})


def test_partial_rows_that_leave_all_of_a_text_alone_leave_its_vector_alone() -> None:
    made = {"embed": f"{__name__}:embedder", "text": ["title", "lang"], "size": 2}
    table = mapped("points", documents={"vectors": {"v": made}, "columns": ["title", "lang"]})
    mask = np.zeros((3, 7), np.bool_)
    mask[0, 1:3], mask[1, 1] = True, True
    assert table.incomplete(mask).tolist() == [False, True, False]
    _, unchanged = table.partials(rows((1, None, None, *ONE[3:]), TWO, ONE), mask)
    assert unchanged[0].tolist() == [False, True, True, True, True]
    assert unchanged[2].tolist() == [False] * 5


def test_keys_are_templates_in_the_words_of_the_target() -> None:
    settings = {
        "hash": "doc:{id}",
        "json": {"key": "json:{id}", "columns": ["heading"], "ttl_s": 60},
        "members": [{"key": "top:{lang}", "member": "{id}", "score": "price"}],
        "columns": {"id": "number", "title": "heading"},
    }
    table = mapped("keys", documents=settings)
    assert table.schema.shape == Keys(
        (
            Hash("doc:{number}"),
            Document("json:{number}", ("heading",), 60),
            Members("top:{lang}", "{number}", "price"),
        )
    )
    mask = np.zeros((1, 7), np.bool_)
    mask[0, 2] = True
    assert table.incomplete(mask).all()


@pytest.mark.parametrize("template", ["doc", "doc:{title}", "doc:{id}:{nothing}"])
def test_a_key_must_be_of_the_row_alone(template: str) -> None:
    with pytest.raises(Misconfigured, match="Template"):
        mapped("keys", documents={"hash": template})


def test_tables_that_are_not_named_are_not_taken() -> None:
    chosen = mapping("rows", documents={})
    assert chosen.tables == ("public.documents",)
    assert not chosen.takes("public.authors")
    pattern = TargetMapping({"public.doc*": FORMS["rows"]()}, FACTS, FORMS["rows"])
    assert set(pattern.tables) == {"public.documents", "public.document_tags"}


@pytest.mark.parametrize(
    ("form", "given", "said"),
    [
        ("rows", {"where": "true) union all (select 1 from batch"}, "more than one condition"),
        ("rows", {"where": "true); select (1"}, "more than one condition"),
        ("rows", {"soft_delete": "title"}, "can't be its `soft_delete`"),
        ("rows", {"columns": ["titel"]}, "Did you mean title"),
        ("points", {"vectors": {"title": {"embed": "json:dumps", "text": ["lang"], "size": 2}}}, "are called title"),
    ],
)
def test_what_a_mapping_can_not_mean_is_refused(form: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        mapped(form, documents=given)
    assert said in f"{refused.value.message} {refused.value.remedy}"


@pytest.mark.parametrize("given", [{"where": ""}, {"transform": " "}, {"constants": {"x": 2**63}}])
def test_empty_conditions_and_numbers_that_no_column_holds_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        mapped("rows", documents=given)


def test_a_reference_of_two_columns_is_found_however_it_is_spaced() -> None:
    pair = TableSchema(
        "public", "pairs", (Column("a", "int8", "bigint", key=True), Column("b", "int8", "bigint", key=True))
    )
    columns = (Column("id", "int8", "bigint", key=True), Column("a", "int8", "bigint"), Column("b", "int8", "bigint"))
    uses = TableSchema("public", "uses", columns)
    facts = {
        "public.pairs": Facts(pair),
        "public.uses": Facts(uses, (ForeignKey(("a", "b"), "public.pairs", ("a", "b")),)),
    }
    settings = {"public.pairs": FORMS["graph"](), "public.uses": FORMS["graph"](references={"a ,  b": "USES"})}
    shape = TargetMapping(settings, facts, FORMS["graph"]).table(uses).schema.shape
    assert [reference.type for reference in shape.references] == ["USES"]
