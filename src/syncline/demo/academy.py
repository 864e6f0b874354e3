"""An academy's users, concepts, learning paths and progress into a graph, where one asks what to learn next.

The academy is an application with an outbox: what it does it publishes in the same transaction, and that is what the
graph hears of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from syncline.demo.copies import Copies
from syncline.demo.scenario import Answer, Filled, Scenario
from syncline.publisher import EventType, SyncEvent, SyncPublisher

__all__ = ["SCENARIO"]

_PATH = 8  # concepts of a path
_STUDIED = 3  # concepts that a new user begins with
_AUTHORS = 20

_ADD_USERS: LiteralString = """
insert into jeseci_academy.users
select 'user-' || g, 'User ' || g, 'user' || g || '@example.org', case when g <= 20 then 'Author' else 'Learner' end,
  date '2024-01-01' + (g %% 700)::int
from generate_series(%(first)s::bigint, %(last)s::bigint) g
returning *
"""
# The first concept of every ten is the topic that the others are part of.
_ADD_CONCEPTS: LiteralString = """
insert into jeseci_academy.concepts (concept_id, title, content, difficulty, author_id, part_of)
select 'concept-' || g, 'Concept ' || g, (select string_agg(md5((g * n)::text), ' ') from generate_series(1, 6) n),
  1 + g %% 5, 'user-' || 1 + g %% %(authors)s, case when g %% 10 > 0 then 'concept-' || g / 10 * 10 end
from generate_series(%(first)s::bigint, %(last)s::bigint) g
returning *
"""
_RELATE: LiteralString = """
insert into jeseci_academy.concept_relations
select 'concept-' || g, 'concept-' || g - 1, case when g %% 3 = 0 then 'RELATES_TO' else 'REQUIRES' end, random()
from generate_series(%(first)s::bigint, %(last)s::bigint) g where g > 0
returning *
"""
_ADD_PATHS: LiteralString = """
insert into jeseci_academy.learning_paths
select 'path-' || g, 'Path ' || g, 10 + g %% 80 from generate_series(%(first)s::bigint, %(last)s::bigint) g
returning *
"""
_FILL_PATHS: LiteralString = """
insert into jeseci_academy.path_concepts
select 'path-' || g, 'concept-' || (g * 31 + p * 7) %% %(concepts)s, p
from generate_series(%(first)s::bigint, %(last)s::bigint) g, generate_series(1, 8) p
on conflict do nothing
returning *
"""
_STUDY: LiteralString = """
insert into jeseci_academy.progress
select 'user-' || u, 'concept-' || c, random()::real, 1 + (random() * 90)::int
from (select distinct %(first)s + (random() * %(span)s)::bigint as u, (random() * (%(concepts)s - 1))::bigint as c
      from generate_series(1, %(count)s)) picked
on conflict (user_id, concept_id) do update
  set mastery = excluded.mastery, minutes = progress.minutes + excluded.minutes, last_seen = clock_timestamp()
returning *
"""
_PICKED: LiteralString = (
    "(select 'concept-' || (random() * (%(concepts)s - 1))::bigint from generate_series(1, %(count)s))"
)
# Of rows that change, what changed is told, with the key.
_EDIT: LiteralString = f"""
update jeseci_academy.concepts set title = title || '''', content = md5(random()::text), updated_at = clock_timestamp()
where concept_id in {_PICKED}
returning concept_id, title, content, updated_at
"""
_REGROUP: LiteralString = f"""
update jeseci_academy.concepts set part_of = 'concept-' || (random() * (%(concepts)s - 1))::bigint / 10 * 10
where part_of is not null and concept_id in {_PICKED}
returning concept_id, part_of
"""
_RETYPE: LiteralString = f"""
update jeseci_academy.concept_relations set kind = case kind when 'REQUIRES' then 'RELATES_TO' else 'REQUIRES' end
where concept_id in {_PICKED}
returning *
"""
_REORDER: LiteralString = """
update jeseci_academy.path_concepts set position = 9 - position
where path_id in (select 'path-' || 1 + (random() * (%(paths)s - 1))::bigint from generate_series(1, %(count)s))
returning *
"""
_RENAME: LiteralString = """
update jeseci_academy.users set name = name || '.' where user_id in (
  select 'user-' || %(first)s + (random() * %(span)s)::bigint from generate_series(1, %(count)s))
returning user_id, name
"""
# A user who leaves takes the progress along.
_FORGET: LiteralString = (
    "delete from jeseci_academy.progress where user_id = any(%(users)s) returning user_id, concept_id"
)
_LEAVE: LiteralString = "delete from jeseci_academy.users where user_id = any(%(users)s) returning user_id"
_EMPTY: LiteralString = (
    "delete from jeseci_academy.path_concepts where path_id = any(%(paths)s) returning path_id, concept_id"
)
_RETIRE: LiteralString = "delete from jeseci_academy.learning_paths where path_id = any(%(paths)s) returning path_id"

# What is told, and of which entity type (see syncline.yaml); the first columns of a row are its key.
_CREATED, _UPDATED, _DELETED = EventType.CONTENT_CREATED, EventType.CONTENT_UPDATED, EventType.CONTENT_DELETED
_RELATED, _UNRELATED = EventType.RELATIONSHIP_CREATED, EventType.RELATIONSHIP_DELETED


def _id(kind: EventType, row: dict[str, Any]) -> Any:
    values = list(row.values())
    return tuple(values[:2]) if kind in (_RELATED, _UNRELATED) else values[0]


def _payload(kind: EventType, row: dict[str, Any]) -> dict[str, Any]:
    """All but the key: relationships have two ids for one."""
    return dict(list(row.items())[2 if kind in (_RELATED, _UNRELATED) else 1 :])


@dataclass
class _Academy:
    """How many of each there have been; users up to ``left`` are gone, but for the authors, and paths up to
    ``retired``. Before it is ``opened`` nobody is told of anything: the rows that are there are loaded."""

    users: int = 0
    concepts: int = 0
    paths: int = 0
    left: int = _AUTHORS
    retired: int = 0
    publisher: SyncPublisher = field(default_factory=SyncPublisher)
    opened: bool = False

    def tell(
        self, cursor: psycopg.Cursor[Any], kind: EventType, entity: str, statement: LiteralString, **given: Any
    ) -> int:
        """Change rows and publish it; how many."""
        with cursor.connection.cursor(row_factory=dict_row) as rows:
            changed = rows.execute(statement, given).fetchall()
            events = [SyncEvent(kind, _id(kind, row), entity, _payload(kind, row)) for row in changed]
            if self.opened and events:
                self.publisher.publish_many(events, session=rows)
        return len(changed)

    def add_users(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        first, count = self.users + 1, max(1, rows // (1 + _STUDIED))
        self.users += count
        added = self.tell(cursor, EventType.USER_CREATED, "user", _ADD_USERS, first=first, last=self.users)
        return added + self._study(cursor, first, count - 1, count * _STUDIED)

    def add_concepts(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Tens of them, so that each topic comes with its parts."""
        first, self.concepts = self.concepts, self.concepts + max(1, rows // 20) * 10
        given = {"first": first, "last": self.concepts - 1}
        added = self.tell(cursor, _CREATED, "concept", _ADD_CONCEPTS, authors=_AUTHORS, **given)
        return added + self.tell(cursor, _RELATED, "concept_relation", _RELATE, **given)

    def add_paths(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        first, self.paths = self.paths + 1, self.paths + max(1, rows // (1 + _PATH))
        given = {"first": first, "last": self.paths}
        added = self.tell(cursor, _CREATED, "learning_path", _ADD_PATHS, **given)
        return added + self.tell(cursor, _RELATED, "path_concept", _FILL_PATHS, concepts=self.concepts, **given)

    def study(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Progress of the users that there are: new, or more of it."""
        return self._study(cursor, self.left + 1, self.users - self.left - 1, rows)

    def _study(self, cursor: psycopg.Cursor[Any], first: int, span: int, count: int) -> int:
        given = {"first": first, "span": span, "count": count, "concepts": self.concepts}
        return self.tell(cursor, _RELATED, "progress", _STUDY, **given)

    def edit(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return self.tell(cursor, _UPDATED, "concept", _EDIT, concepts=self.concepts, count=rows)

    def regroup(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Foreign keys change, hence relationships."""
        return self.tell(cursor, _UPDATED, "concept", _REGROUP, concepts=self.concepts, count=rows)

    def retype(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Relationships get another type."""
        return self.tell(cursor, _RELATED, "concept_relation", _RETYPE, concepts=self.concepts, count=rows)

    def reorder(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return self.tell(cursor, _RELATED, "path_concept", _REORDER, paths=self.paths, count=max(1, rows // _PATH))

    def rename(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        given = {"first": self.left + 1, "span": self.users - self.left - 1, "count": rows}
        return self.tell(cursor, EventType.USER_UPDATED, "user", _RENAME, **given)

    def retire(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Paths go, with what they contain."""
        count = min(max(1, rows // (1 + _PATH)), self.paths - self.retired - 1)
        paths = [f"path-{self.retired + 1 + i}" for i in range(count)]
        self.retired += count
        emptied = self.tell(cursor, _UNRELATED, "path_concept", _EMPTY, paths=paths)
        return emptied + self.tell(cursor, _DELETED, "learning_path", _RETIRE, paths=paths)

    def leave(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        count = min(max(1, rows // (1 + _STUDIED)), self.users - self.left - 1)
        users = [f"user-{self.left + 1 + i}" for i in range(count)]
        self.left += count
        forgotten = self.tell(cursor, _UNRELATED, "progress", _FORGET, users=users)
        return forgotten + self.tell(cursor, EventType.USER_DELETED, "user", _LEAVE, users=users)


def _fill(connection: psycopg.Connection[Any], rows: int) -> Filled:
    academy = _Academy()
    with connection.cursor() as cursor:
        academy.users = academy.tell(cursor, EventType.USER_CREATED, "user", _ADD_USERS, first=1, last=_AUTHORS)
        academy.add_concepts(cursor, rows // 4)
        academy.add_paths(cursor, rows // 8)
        academy.add_users(cursor, rows // 2 + 2 * (1 + _STUDIED))
    academy.opened = True
    return (
        (15, academy.add_users),
        (5, academy.add_concepts),
        (5, academy.add_paths),
        (40, academy.study),
        (12, academy.edit),
        (6, academy.regroup),
        (5, academy.retype),
        (5, academy.reorder),
        (7, academy.leave),
        (3, academy.rename),
        (2, academy.retire),
    )


def _look(copies: Copies) -> dict[str, int]:
    (found,) = copies.graph(
        "MATCH (u:User) WITH count(u) AS users MATCH (c:Concept) WITH users, count(c) AS concepts "
        "OPTIONAL MATCH (:User)-[s:STUDIES]->() RETURN users, concepts, count(s) AS studies"
    )
    return {"users": found["users"], "concepts": found["concepts"], "concepts being studied": found["studies"]}


def _ask(copies: Copies) -> Iterator[Answer]:
    found = copies.graph(
        "MATCH (u:Learner)-[s:STUDIES]->(c:Concept)<-[:REQUIRES]-(next:Concept) WHERE s.mastery > 0.8 "
        "RETURN u.name AS who, c.title AS knows, next.title AS next ORDER BY s.mastery DESC LIMIT 3"
    )
    yield (
        "Who is ready for what? (the graph)",
        "; ".join(f"{f['who']}, who knows {f['knows']}, for {f['next']}" for f in found),
    )
    found = copies.graph(
        "MATCH (p:LearningPath)-[r:CONTAINS]->(c:Concept)-[:WRITTEN_BY]->(a:Author) "
        "RETURN a.name AS author, count(DISTINCT p) AS paths ORDER BY paths DESC, author LIMIT 3"
    )
    yield "Whose concepts are on most paths?", "; ".join(f"{f['author']}: {f['paths']}" for f in found)


SCENARIO = Scenario(
    name="academy",
    summary="concepts, learning paths, users and progress into a graph",
    rows=20_000,
    existing=10_000,
    largest=1000,
    servers=frozenset({"graph"}),
    fill=_fill,
    look=_look,
    ask=_ask,
)
