"""Documents in chunks with embeddings, into a graph, vectors and DuckDB at once.

A chunk is about one of eight topics: its text names it, and its vector points that way, so that a search for a topic's
direction finds chunks of that topic. Rows are made by PostgreSQL itself, a statement for many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from syncline.demo.copies import Copies
from syncline.demo.damage import Damage, Hands
from syncline.demo.scenario import Answer, Filled, Scenario, done

__all__ = ["SCENARIO", "change_text", "remove_point"]

_SIZE = 64
_TOPICS = ("tides", "comets", "bridges", "clocks", "forests", "lighthouses", "volcanoes", "looms")
_CHUNKS = 8  # of a document
_MENTIONS = 2  # of a chunk
_ROWS_PER_DOCUMENT = 1 + _CHUNKS * (1 + _MENTIONS)
_ENTITIES = 200

# A vector of length 1 near the direction of topic ``g % 8``. It names g, so that each row gets one of its own.
_DENSE: LiteralString = """
(select array_agg((x / norm)::real order by i) from (
   select i, x, sqrt(sum(x * x) over ()) as norm from (
     select i, (case when i %% 8 = g %% 8 then 1 else 0 end) + (random() - 0.5) * 0.6 as x
     from generate_series(0, 63) i where g is not null) raw) scaled)
"""
_SPARSE: LiteralString = (
    "jsonb_build_object('indices', jsonb_build_array(g %% 8, 8 + g %% 1000), 'values', jsonb_build_array(1, random()))"
)
_CONTENT: LiteralString = (
    "format('Part %%s, about %%s. %%s', g, (%(topics)s::text[])[1 + g %% 8],"
    " (select string_agg(md5((g * n)::text), ' ') from generate_series(1, 8) n))"
)
# Chunk number g always has the same id, so that others can refer to it.
_ID: LiteralString = "md5('chunk ' || g)::uuid"
_DOCUMENTS: LiteralString = """
insert into unified.documents
select d, 'Document ' || d, (array['en', 'de', 'fr'])[1 + d %% 3], jsonb_build_object('pages', 1 + d %% 40)
from generate_series(%(first)s::bigint, %(last)s::bigint) d
"""
_ADD_CHUNKS: LiteralString = f"""
insert into unified.chunks (id, document_id, previous_id, content, dense, sparse, metadata, system_origin)
select {_ID}, 1 + g / 8, case when g %% 8 > 0 then md5('chunk ' || g - 1)::uuid end, {_CONTENT}, {_DENSE}, {_SPARSE},
  jsonb_build_object('position', g %% 8), (array['claude', 'cognee', 'hybrid'])[1 + g %% 3]
from generate_series(%(first)s::bigint, %(last)s::bigint) g
"""
_ADD_MENTIONS: LiteralString = f"""
insert into unified.mentions
select {_ID}, 1 + (g * 7 + m * 13) %% %(entities)s, random()::real
from generate_series(%(first)s::bigint, %(last)s::bigint) g, generate_series(1, 2) m
"""
_ADD_ENTITIES: LiteralString = """
insert into unified.entities
select e, 'Entity ' || e, (array['Person', 'Place', 'Work', 'Idea'])[1 + e %% 4] from generate_series(1, %(entities)s) e
"""
_PICKED: LiteralString = "(select distinct (random() * (%(top)s - 1))::bigint as g from generate_series(1, %(count)s))"
_REWRITE: LiteralString = f"""
update unified.chunks c set content = {_CONTENT}, dense = {_DENSE}, sparse = {_SPARSE}, updated_at = clock_timestamp()
from {_PICKED} p where c.id = {_ID}
"""
_ANNOTATE: LiteralString = f"""
update unified.chunks c set metadata = c.metadata || jsonb_build_object('seen', (random() * 1000)::int),
  updated_at = clock_timestamp()
from {_PICKED} p where c.id = {_ID}
"""
_MOVE: LiteralString = f"""
update unified.chunks c set document_id = 1 + (random() * (%(documents)s - 1))::bigint, previous_id = null
from {_PICKED} p where c.id = {_ID}
"""
_RETITLE: LiteralString = """
update unified.documents set title = title || '''', updated_at = clock_timestamp()
where id in (select 1 + (random() * (%(documents)s - 1))::bigint from generate_series(1, %(count)s))
"""
_RECLASSIFY: LiteralString = """
update unified.entities set kind = (array['Person', 'Place', 'Work', 'Idea'])[1 + (random() * 3)::int]
where id in (select 1 + (random() * (%(entities)s - 1))::bigint from generate_series(1, %(count)s))
"""
_WEIGH: LiteralString = (
    f"update unified.mentions set weight = random() where chunk_id in (select {_ID} from {_PICKED} p)"
)
# What refers to a chunk goes before it.
_FORGET: tuple[LiteralString, ...] = (
    f"create temporary table doomed on commit drop as select {_ID} as id from {_PICKED} p",
    "delete from unified.mentions where chunk_id in (select id from doomed)",
    "update unified.chunks set previous_id = null where previous_id in (select id from doomed)",
    "delete from unified.chunks where id in (select id from doomed)",
)


@dataclass
class _Library:
    """How many documents have been added."""

    documents: int = 0

    def add(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Whole documents, with their chunks and what those mention."""
        first, self.documents = self.documents + 1, self.documents + max(1, rows // _ROWS_PER_DOCUMENT)
        chunks = {"first": (first - 1) * _CHUNKS, "last": self.documents * _CHUNKS - 1}
        added = done(cursor, _DOCUMENTS, first=first, last=self.documents)
        added += done(cursor, _ADD_CHUNKS, topics=list(_TOPICS), **chunks)
        return added + done(cursor, _ADD_MENTIONS, entities=_ENTITIES, **chunks)

    def rewrite(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Another text, hence other vectors."""
        return done(cursor, _REWRITE, topics=list(_TOPICS), **self._some(rows))

    def annotate(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """The payload alone changes; the vectors are what they were."""
        return done(cursor, _ANNOTATE, **self._some(rows))

    def move(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Foreign keys change, hence relationships."""
        return done(cursor, _MOVE, documents=self.documents, **self._some(rows))

    def retitle(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _RETITLE, documents=self.documents, count=rows)

    def reclassify(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Entities get another label."""
        return done(cursor, _RECLASSIFY, entities=_ENTITIES, count=min(rows, 20))

    def weigh(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Properties of relationships change."""
        return done(cursor, _WEIGH, **self._some(max(1, rows // _MENTIONS)))

    def forget(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Chunks go, with all that refers to them."""
        prepare, *changes = _FORGET
        cursor.execute(prepare, self._some(max(1, rows // (1 + _MENTIONS))))
        return sum(done(cursor, statement) for statement in changes)

    def _some(self, count: int) -> dict[str, int]:
        return {"top": self.documents * _CHUNKS, "count": count}


def _fill(connection: psycopg.Connection[Any], rows: int) -> Filled:
    library = _Library()
    with connection.cursor() as cursor:
        cursor.execute(_ADD_ENTITIES, {"entities": _ENTITIES})
        library.add(cursor, rows)
    return (
        (25, library.add),
        (20, library.rewrite),
        (25, library.annotate),
        (8, library.move),
        (5, library.retitle),
        (2, library.reclassify),
        (8, library.weigh),
        (7, library.forget),
    )


def _look(copies: Copies) -> dict[str, int]:
    (found,) = copies.graph(
        "MATCH (n:Chunk) WITH count(n) AS chunks OPTIONAL MATCH ()-[r:MENTIONS]->() RETURN chunks, count(r) AS mentions"
    )
    (rows,) = copies.rows("select count(*) as n from unified.chunks")
    return {"chunks in the graph": found["chunks"], "mentions": found["mentions"], "chunks in DuckDB": rows["n"]}


def _ask(copies: Copies) -> Iterator[Answer]:
    topic = 5
    direction = [1.0 if i % len(_TOPICS) == topic else 0.0 for i in range(_SIZE)]
    nearest = copies.nearest("chunks", direction, using="dense", limit=3)
    yield (
        f"Which chunks are about {_TOPICS[topic]}? (Qdrant, by vector)",
        "; ".join(f"{' '.join(found['content'].split()[:4])} {found['score']:.2f}" for found in nearest),
    )
    found = copies.graph(
        "MATCH (e:Entity)<-[:MENTIONS]-(c:Chunk)-[:PART_OF]->(d:Document) WHERE c.id IN $chunks "
        "RETURN DISTINCT e.name AS entity, d.title AS document ORDER BY entity LIMIT 4",
        chunks=[point["id"] for point in nearest],
    )
    yield "What do they mention, and where? (the graph)", "; ".join(f"{f['entity']} in {f['document']}" for f in found)
    origins = copies.rows("select system_origin, count(*) as n from unified.chunks group by all order by all")
    yield "Who wrote how many? (DuckDB)", ", ".join(f"{o['system_origin']} {o['n']:,}" for o in origins)


def change_text(hands: Hands) -> None:
    """Give some chunk of the graph another text."""
    hands.graph("MATCH (c:Chunk) WITH c ORDER BY c.id LIMIT 1 SET c.content = 'Nobody wrote this.'")


def _drop_edge(hands: Hands) -> None:
    hands.graph("MATCH (:Chunk)-[r:MENTIONS]->(:Entity) WITH r ORDER BY r.weight LIMIT 1 DELETE r")


def remove_point(hands: Hands) -> None:
    """Delete some chunk's point."""
    hands.remove_point("chunks")


def _add_row(hands: Hands) -> None:
    hands.rows("insert into unified.entities select * replace (-1 as id) from unified.entities limit 1")


_DAMAGE = (
    Damage("the text of a chunk is another one", "graph", "unified.chunks", "different", change_text),
    Damage("a relationship MENTIONS is gone", "graph", "unified.mentions", "missing", _drop_edge),
    Damage("a point is gone", "vectors", "unified.chunks", "missing", remove_point),
    Damage("an entity is there that nobody made", "tables", "unified.entities", "extra", _add_row),
)

SCENARIO = Scenario(
    name="chunks",
    summary="documents with embeddings into a graph, vectors and DuckDB at once",
    rows=30_000,
    existing=15_000,
    largest=1000,
    servers=frozenset({"graph"}),
    fill=_fill,
    look=_look,
    ask=_ask,
    damage=_DAMAGE,
)
