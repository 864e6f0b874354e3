"""Pages of websites that are read again and again, with users and projects, into DuckDB and Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
import pyarrow.parquet as pq

from syncline.demo.copies import Copies
from syncline.demo.scenario import Answer, Filled, Scenario, done

__all__ = ["SCENARIO"]

_TABLES = ("users", "projects", "domains", "pages_v2", "project_pages")

_ADD_USERS: LiteralString = """
insert into users
select g, 'User ' || g, 'user' || g || '@example.org', (array['free', 'free', 'free', 'pro', 'team'])[1 + g %% 5],
  now() - g * interval '1 hour'
from generate_series(%(first)s::bigint, %(last)s::bigint) g
"""
_ADD_PROJECTS: LiteralString = """
insert into projects
select g, 1 + g %% %(users)s, 'Project ' || g, 'active', jsonb_build_object('depth', g %% 5, 'langs', array['en', 'de'])
from generate_series(%(first)s::bigint, %(last)s::bigint) g
"""
_ADD_DOMAINS: LiteralString = """
insert into domains
select g, 'www' || g || '.example.org', clock_timestamp(), 'User-agent: *' from
  generate_series(%(first)s::bigint, %(last)s::bigint) g
"""
# One page in eight is so long that PostgreSQL stores its text out of line.
_ADD_PAGES: LiteralString = """
insert into pages_v2
select md5('page ' || g)::uuid, 1 + g %% %(domains)s, 'https://www' || 1 + g %% %(domains)s || '.example.org/' || g,
  case when g %% 19 = 0 then 404 else 200 end, 'Page ' || g,
  (select string_agg(md5((g * n)::text), ' ') from generate_series(1, case when g %% 8 = 0 then 150 else 6 end) n),
  100 + (random() * 900)::int, random()::numeric(5,4), clock_timestamp()
from generate_series(%(first)s::bigint, %(last)s::bigint) g
"""
_LINK: LiteralString = """
insert into project_pages
select 1 + g %% %(projects)s, md5('page ' || g)::uuid, g %% 10 = 0
from generate_series(%(first)s::bigint, %(last)s::bigint) g
"""
_PICKED: LiteralString = (
    "(select md5('page ' || 1 + (random() * (%(pages)s - 1))::bigint)::uuid from generate_series(1, %(count)s))"
)
# Read again, and found as it was: all but the text changes.
_SEEN: LiteralString = f"""
update pages_v2 set scraped_at = clock_timestamp(), quality = random()::numeric(5,4) where id in {_PICKED}
"""
_REWRITTEN: LiteralString = f"""
update pages_v2 set content = md5(random()::text) || coalesce(content, ''), word_count = word_count + 1,
  status_code = 200, scraped_at = clock_timestamp()
where id in {_PICKED}
"""
_STAR: LiteralString = (
    f"update project_pages set starred = not starred, note = md5(random()::text) where page_id in {_PICKED}"
)
_SCRAPED: LiteralString = """
update domains set last_scraped = clock_timestamp()
where id in (select 1 + (random() * (%(domains)s - 1))::bigint from generate_series(1, %(count)s))
"""
_STATUS: LiteralString = """
update projects set status = (array['active', 'paused', 'completed'])[1 + (random() * 2)::int], updated_at = now()
where id in (select 1 + (random() * (%(projects)s - 1))::bigint from generate_series(1, %(count)s))
"""
_DROP: tuple[LiteralString, ...] = (
    f"create temporary table doomed on commit drop as select * from {_PICKED} picked(id)",
    "delete from project_pages where page_id in (select id from doomed)",
    "delete from pages_v2 where id in (select id from doomed)",
)


@dataclass
class _Archive:
    """How many of each there have been."""

    users: int = 0
    projects: int = 0
    domains: int = 0
    pages: int = 0

    def add_users(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Each with a project."""
        count, first = max(1, rows // 2), self.users + 1
        self.users += count
        added = done(cursor, _ADD_USERS, first=first, last=self.users)
        first, self.projects = self.projects + 1, self.projects + count
        return added + done(cursor, _ADD_PROJECTS, first=first, last=self.projects, users=self.users)

    def add_domains(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        first, self.domains = self.domains + 1, self.domains + min(rows, 20)
        return done(cursor, _ADD_DOMAINS, first=first, last=self.domains)

    def add_pages(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Each in a project."""
        first, self.pages = self.pages + 1, self.pages + max(1, rows // 2)
        added = done(cursor, _ADD_PAGES, first=first, last=self.pages, domains=self.domains)
        return added + done(cursor, _LINK, first=first, last=self.pages, projects=self.projects)

    def see(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _SEEN, pages=self.pages, count=rows)

    def rewrite(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _REWRITTEN, pages=self.pages, count=rows)

    def star(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _STAR, pages=self.pages, count=rows)

    def scrape(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _SCRAPED, domains=self.domains, count=rows)

    def change_status(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        return done(cursor, _STATUS, projects=self.projects, count=rows)

    def drop(self, cursor: psycopg.Cursor[Any], rows: int) -> int:
        """Pages go, from their projects first."""
        prepare, *changes = _DROP
        cursor.execute(prepare, {"pages": self.pages, "count": max(1, rows // 2)})
        return sum(done(cursor, statement) for statement in changes)


def _fill(connection: psycopg.Connection[Any], rows: int) -> Filled:
    archive = _Archive()
    with connection.cursor() as cursor:
        archive.add_users(cursor, rows // 10)
        archive.add_domains(cursor, rows // 100 + 1)
        archive.add_pages(cursor, rows * 9 // 10)
    return (
        (5, archive.add_users),
        (2, archive.add_domains),
        (25, archive.add_pages),
        (30, archive.see),
        (15, archive.rewrite),
        (8, archive.star),
        (5, archive.scrape),
        (5, archive.change_status),
        (5, archive.drop),
    )


def _look(copies: Copies) -> dict[str, int]:
    return copies.rows("select " + ", ".join(f"(select count(*) from {t}) as {t}" for t in _TABLES))[0]


def _ask(copies: Copies) -> Iterator[Answer]:
    found = copies.rows(
        "select u.plan, count(*) as pages, round(avg(p.quality), 3) as quality from pages_v2 p "
        "join project_pages l on l.page_id = p.id join projects j on j.id = l.project_id "
        "join users u on u.id = j.user_id "
        "where p.status_code = 200 group by all order by all"
    )
    yield (
        "How many pages do each plan's users collect, and how good are they? (DuckDB)",
        ", ".join(f"{f['plan']}: {f['pages']:,} with a quality of {f['quality']}" for f in found),
    )
    files = sorted(copies.exported("public.pages_v2").glob("*.parquet"))
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    yield "How many pages were in the last export? (Parquet)", f"{rows:,}, in {len(files)} file(s)"


SCENARIO = Scenario(
    name="analytics",
    summary="pages of websites into DuckDB and Parquet files",
    rows=200_000,
    existing=100_000,
    largest=4000,
    servers=frozenset(),
    fill=_fill,
    look=_look,
    ask=_ask,
)
