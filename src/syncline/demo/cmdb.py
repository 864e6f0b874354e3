"""Configuration items, what depends on what, users and roles into a graph, by triggers; the items also into a cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from syncline.demo.copies import Copies
from syncline.demo.scenario import Answer, Filled, Scenario, done

__all__ = ["SCENARIO"]

_ROLES = 8
_USERS = 40
_RELATIONS = 2  # of a new item

_ADD_ROLES: LiteralString = """
insert into roles (name, permissions)
select 'Role ' || g, array['read', 'change ' || g] from generate_series(1, %(roles)s) g
"""
_ADD_USERS: LiteralString = """
with added as (
  insert into users (username, email)
  select 'user' || g, 'user' || g || '@example.org' from generate_series(%(first)s::bigint, %(last)s::bigint) g
  returning user_id
)
insert into user_roles (user_id, role_id)
select user_id, 1 + (user_id + n) %% %(roles)s from added, generate_series(0, 1) n
"""
_ADD_ITEMS: LiteralString = """
insert into configuration_items (name, ci_type, status, location, owner_id, attributes)
select kind || ' ' || g, kind, 'active', 'Room ' || g %% 50, (select user_id from users offset g %% %(users)s limit 1),
  jsonb_build_object('cores', 1 + g %% 64, 'tags', jsonb_build_array('t' || g %% 7, md5(g::text)))
from (select g, (array['Service', 'Application', 'Database', 'Server', 'NetworkDevice'])[1 + g %% 5] as kind
      from generate_series(%(first)s::bigint, %(last)s::bigint) g) items
"""
# An item needs some that there are already, and runs on the last server before it.
_RELATE: LiteralString = """
insert into relationships (source_ci_id, target_ci_id, relationship_type, criticality)
select i.ci_id, t.ci_id, case when t.ci_type = 'Server' then 'RUNS_ON' when t.ci_type = 'Database' then 'STORES_IN'
  when t.ci_type = 'NetworkDevice' then 'CONNECTS_TO' else 'DEPENDS_ON' end, 1 + i.ci_id %% 5
from configuration_items i, generate_series(1, %(count)s) n,
  lateral (select ci_id, ci_type from configuration_items where ci_id < i.ci_id - n * 7 %% 11
           order by ci_id desc limit 1) t
where i.ci_id between %(first)s and %(last)s
"""
# What happens to a room happens to all that is in it: one statement, many rows.
_MAINTAIN: LiteralString = """
update configuration_items
set status = case status when 'active' then 'maintenance' else 'active' end, updated_at = clock_timestamp()
where ci_id in (select ci_id from configuration_items where location = 'Room ' || (random() * 49)::int limit %(count)s)
"""
_PICKED: LiteralString = "(select 1 + (random() * (%(items)s - 1))::bigint from generate_series(1, %(count)s))"
_MEASURE: LiteralString = f"""
update configuration_items set attributes = attributes || jsonb_build_object('load', round(random()::numeric, 3)),
  updated_at = clock_timestamp()
where ci_id in {_PICKED}
"""
_HAND_OVER: LiteralString = f"""
update configuration_items set owner_id = (select user_id from users order by random() limit 1)
where ci_id in {_PICKED}
"""
_RETYPE: LiteralString = f"""
update configuration_items set ci_type = case ci_type when 'Application' then 'Service' else 'Application' end
where ci_type in ('Application', 'Service') and ci_id in {_PICKED}
"""
_REWIRE: LiteralString = f"""
update relationships set target_ci_id = source_ci_id + 1, relationship_type = 'DEPENDS_ON'
where source_ci_id in {_PICKED}
  and exists (select from configuration_items where ci_id = source_ci_id + 1)
"""
_WEIGH: LiteralString = f"""
update relationships set criticality = 1 + (random() * 4)::int where source_ci_id in {_PICKED}
"""
# Its relationships go with it, by the foreign key: their own triggers tell of that.
_RETIRE: LiteralString = f"delete from configuration_items where ci_id in {_PICKED}"
_GRANT: LiteralString = """
insert into user_roles (user_id, role_id)
select distinct user_id, (1 + random() * (%(roles)s - 1))::int
from (select user_id from users order by random() limit %(count)s) u
on conflict (user_id, role_id) do update set granted_at = clock_timestamp()
"""
_LEAVE: LiteralString = """
delete from users where user_id in (
  select user_id from users where user_id > %(staff)s order by user_id limit %(count)s)
"""


@dataclass
class _Inventory:
    """How many of each there have been."""

    items: int = 0
    users: int = 0

    def add(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Items, and what they need of those that are there."""
        first, self.items = self.items + 1, self.items + max(1, rows // (1 + _RELATIONS))
        place = {"first": first, "last": self.items}
        added = done(cursor, _ADD_ITEMS, users=_USERS, **place)
        return added + done(cursor, _RELATE, count=_RELATIONS, **place)

    def hire(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Users, each with two roles."""
        first, count = self.users + 1, max(1, rows // 3)
        self.users += count
        return count + done(cursor, _ADD_USERS, first=first, last=self.users, roles=_ROLES)

    def maintain(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _MAINTAIN, count=rows)

    def measure(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _MEASURE, **self._some(rows))

    def hand_over(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Foreign keys change, hence relationships."""
        return done(cursor, _HAND_OVER, **self._some(rows))

    def retype(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Nodes get another label."""
        return done(cursor, _RETYPE, **self._some(rows))

    def rewire(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Relationships get another end and another type."""
        return done(cursor, _REWIRE, **self._some(max(1, rows // _RELATIONS)))

    def weigh(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _WEIGH, **self._some(max(1, rows // _RELATIONS)))

    def retire(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _RETIRE, **self._some(max(1, rows // (1 + 2 * _RELATIONS))))

    def grant(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _GRANT, roles=_ROLES, count=rows)

    def leave(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Users go with their roles; what they owned is nobody's."""
        return done(cursor, _LEAVE, staff=_USERS, count=max(1, rows // 3))

    def _some(self, count: int) -> dict[str, int]:
        return {"items": self.items, "count": count}


def _fill(connection: psycopg.Connection[Any], rows: int) -> Filled:
    inventory = _Inventory()
    with connection.cursor() as cursor:
        cursor.execute(_ADD_ROLES, {"roles": _ROLES})
        inventory.hire(cursor, 3 * _USERS)
        inventory.add(cursor, max(rows, 60))
    return (
        (20, inventory.add),
        (4, inventory.hire),
        (12, inventory.maintain),
        (25, inventory.measure),
        (6, inventory.hand_over),
        (4, inventory.retype),
        (6, inventory.rewire),
        (8, inventory.weigh),
        (6, inventory.retire),
        (5, inventory.grant),
        (4, inventory.leave),
    )


def _look(copies: Copies) -> dict[str, int]:
    (found,) = copies.graph(
        "MATCH (c:CI) WITH count(c) AS items MATCH (u:User) WITH items, count(u) AS users "
        "OPTIONAL MATCH (:CI)-[r:DEPENDS_ON|RUNS_ON|STORES_IN|CONNECTS_TO]->(:CI) "
        "RETURN items, users, count(r) AS needs"
    )
    return {"items": found["items"], "users": found["users"], "relationships": found["needs"]}


def _ask(copies: Copies) -> Iterator[Answer]:
    found = copies.graph(
        "MATCH (s:Server)<-[:RUNS_ON]-(c:CI) WITH s, count(c) AS n ORDER BY n DESC, s.name LIMIT 1 "
        "MATCH (s)<-[:RUNS_ON]-(c:CI)-[:OWNED_BY]->(u:User) "
        "RETURN s.ci_id AS id, s.name AS server, c.name AS item, u.username AS owner ORDER BY item LIMIT 3"
    )
    yield (
        "Which server hurts most, and who has to know? (the graph)",
        f"{found[0]['server']}: " + "; ".join(f"{f['owner']} for {f['item']}" for f in found) if found else "None.",
    )
    for one in found[:1]:
        text = copies.key(f"ci:{one['id']}")
        item = json.loads(text) if text else {}
        yield (
            "And what is it? (the cache)",
            f"{item['name']} in {item['location']}, {item['status']}" if item else "Not in the cache.",
        )
    found = copies.graph(
        "MATCH (u:User)-[:HAS_ROLE]->(r:Role) RETURN r.name AS role, count(u) AS users "
        "ORDER BY users DESC, role LIMIT 3"
    )
    yield "Who has which role? (the graph)", "; ".join(f"{f['role']}: {f['users']}" for f in found)


SCENARIO = Scenario(
    name="cmdb",
    summary="configuration items, relationships, users and roles by triggers into a graph, items also into a cache",
    rows=20_000,
    existing=10_000,
    largest=1000,
    servers=frozenset({"graph", "keys"}),
    fill=_fill,
    look=_look,
    ask=_ask,
)
