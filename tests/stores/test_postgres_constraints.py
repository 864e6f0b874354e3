"""Tables whose owner gave them constraints, triggers and columns of their own (correctness rule 32)."""

from __future__ import annotations

from decimal import Decimal

import pytest
from pg_target import opened, table_of

from servers import Database
from syncline.change import Column
from syncline.errors import Misconfigured, Rejected
from syncline.testing.store_suite import ITEM, Rows, contents, work

USER = table_of(
    "users", Column("email", "text", "text"), Column("boss", "int8", "bigint"), Column("bio", "text", "text")
)
BADGE = table_of("badges", Column("owner", "int8", "bigint"))

_USERS = (
    "create table users (id bigint primary key, email text not null unique, boss bigint, bio text,"
    " mine text not null default 'new')"
)


def marked(database: Database) -> None:
    """Put something into the column that is not the source's."""
    database.execute("update users set mine = 'kept ' || id")


def emails(database: Database) -> list[tuple[int, str, str]]:
    return database.execute("select id, email, mine from users order by id")  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------- unique values


@pytest.mark.parametrize("role", ["replica", "origin"])
def test_unique_values_that_swap_and_rotate_arrive_and_other_columns_stay(database: Database, role: str) -> None:
    database.execute(_USERS)
    with opened(database, USER, session_replication_role=role) as store:
        store.apply(
            work(Rows(USER).upsert(5, 1, "a", None, "x").upsert(5, 2, "b", None, "x").upsert(5, 3, "c", None, "x"))
        )
        marked(database)
        store.apply(work(Rows(USER).upsert(6, 1, "b", None, "x").upsert(6, 2, "a", None, "x")))
        assert emails(database) == [(1, "b", "kept 1"), (2, "a", "kept 2"), (3, "c", "kept 3")]
        rotated = Rows(USER).upsert(7, 1, "a", None, "x").upsert(7, 4, "d", None, "x")
        rotated.partial(7, 2, "c", None, None, unchanged=["bio"]).partial(7, 3, "b", None, None, unchanged=["bio"])
        store.apply(work(rotated))
        store.apply(work(rotated))
        assert emails(database) == [(1, "a", "kept 1"), (2, "c", "kept 2"), (3, "b", "kept 3"), (4, "d", "new")]
        assert contents(store, USER) == {n: (e, None, "x", 7) for n, e in ((1, "a"), (2, "c"), (3, "b"), (4, "d"))}


def test_a_unique_value_goes_from_a_deleted_or_moved_row_to_another(database: Database) -> None:
    database.execute(_USERS)
    with opened(database, USER) as store:
        store.apply(work(Rows(USER).upsert(5, 1, "a", None, "one").upsert(5, 2, "b", None, "two")))
        store.apply(work(Rows(USER).delete(6, 1).upsert(6, 3, "a", None, "three")))
        moved = Rows(USER).partial(7, 9, "b", None, None, unchanged=["bio"], origin=(2,)).delete(7, 2)
        store.apply(work(moved))
        store.apply(work(moved))
        assert contents(store, USER) == {3: ("a", None, "three", 6), 9: ("b", None, "two", 7)}


def test_a_unique_index_over_an_expression_moves_as_well(database: Database) -> None:
    database.execute(_USERS.replace(" unique", "") + "; create unique index on users (lower(email)) where boss is null")
    with opened(database, USER) as store:
        store.apply(work(Rows(USER).upsert(5, 1, "A", None, "").upsert(5, 2, "b", None, "").upsert(5, 3, "B", 1, "")))
        store.apply(work(Rows(USER).upsert(6, 1, "b", None, "").upsert(6, 2, "B", 7, "").upsert(6, 3, "a", None, "")))
        assert sorted(contents(store, USER).values()) == [("B", 7, "", 6), ("a", None, "", 6), ("b", None, "", 6)]


def test_a_constraint_that_came_while_the_store_was_open_is_respected(database: Database) -> None:
    database.execute(_USERS.replace(" unique", ""))
    with opened(database, USER) as store:
        store.apply(work(Rows(USER).upsert(5, 1, "a", None, "").upsert(5, 2, "b", None, "")))
        database.execute("alter table users add unique (email)")
        store.apply(work(Rows(USER).upsert(6, 1, "b", None, "").upsert(6, 2, "a", None, "")))
        assert emails(database) == [(1, "b", "new"), (2, "a", "new")]


def test_an_older_row_never_pushes_a_newer_one_out_of_its_unique_value(database: Database) -> None:
    database.execute(_USERS)
    with opened(database, USER) as store:
        store.apply(work(Rows(USER).upsert(5, 1, "a", None, "").upsert(9, 2, "b", None, "")))
        store.apply(work(Rows(USER).upsert(6, 1, "c", None, "").upsert(6, 2, "a", None, "late")))
        assert emails(database) == [(1, "c", "new"), (2, "b", "new")]


def test_rows_that_clash_with_a_row_of_others_are_parked_and_their_neighbours_arrive(database: Database) -> None:
    database.execute(_USERS + "; insert into users values (99, 'mine', null, null)")
    with opened(database, USER) as store:
        rows = Rows(USER)
        for i in range(30):
            rows.upsert(5, i, "mine" if i == 11 else f"{i}@x", None, None)
        with pytest.raises(Rejected) as refused:
            store.apply(work(rows))
        assert refused.value.rows == (11,)
        assert "UniqueViolation" in refused.value.reason
        assert "mine" not in str(refused.value)


def test_only_the_row_that_clashes_for_good_is_parked_and_those_that_swap_beside_it_arrive(database: Database) -> None:
    database.execute(_USERS + "; insert into users values (99, 'mine', null, null)")
    with opened(database, USER) as store:
        begun = Rows(USER)
        for i in range(1, 9):
            begun.upsert(5, i, f"{i}@x", None, "x")
        store.apply(work(begun))
        swapped = {1: "2@x", 2: "1@x", 3: "mine", 4: "5@x", 5: "6@x", 6: "4@x"}

        def changes(but: int | None = None) -> Rows:
            rows = Rows(USER)
            for i, email in swapped.items():
                if i == but:
                    continue
                if i % 2:
                    rows.upsert(6, i, email, None, "y")
                else:
                    rows.partial(6, i, email, None, None, unchanged=["bio"])
            return rows.upsert(6, 10, "7@x", None, "y").delete(6, 7).upsert(6, 8, "8@x", None, "y")

        with pytest.raises(Rejected) as refused:
            store.apply(work(changes()))
        assert refused.value.rows == (1,)  # of the whole rows 1, 3, 5, 10 and 8
        store.apply(work(changes(but=3)))
        assert [(i, e) for i, e, _ in emails(database)] == [
            *((1, "2@x"), (2, "1@x"), (3, "3@x"), (4, "5@x"), (5, "6@x"), (6, "4@x")),
            *((8, "8@x"), (10, "7@x"), (99, "mine")),
        ]


def test_a_row_that_waits_for_the_value_of_a_parked_row_is_parked_behind_it(database: Database) -> None:
    database.execute(_USERS + "; insert into users values (99, 'mine', null, null)")
    with opened(database, USER) as store:
        store.apply(work(Rows(USER).upsert(5, 1, "a", None, "x").upsert(5, 2, "b", None, "x")))
        both = Rows(USER).upsert(6, 1, "mine", None, "x").upsert(6, 2, "a", None, "x")
        with pytest.raises(Rejected) as refused:
            store.apply(work(both))
        assert refused.value.rows == (0,)
        with pytest.raises(Rejected) as refused:
            store.apply(work(Rows(USER).upsert(6, 2, "a", None, "x")))
        assert refused.value.rows == (0,)


# ------------------------------------------------------------------------------------------------- foreign keys

_FAMILY = (
    "create table users (id bigint primary key, email text unique, boss bigint references users, bio text);"
    "create table badges (id bigint primary key, owner bigint not null references users on delete cascade)"
)


def test_foreign_keys_and_triggers_sleep_by_default(database: Database) -> None:
    database.execute(
        _FAMILY + "; create table seen (what text);"
        "create function note() returns trigger language plpgsql as $$"
        " begin insert into seen values (tg_name); return new; end $$;"
        "create trigger ordinary after insert on users for each row execute function note();"
        "create trigger awake after insert on users for each row execute function note();"
        "alter table users enable replica trigger awake"
    )
    with opened(database, USER, BADGE) as store:
        store.apply(work(Rows(BADGE).upsert(5, 1, 7)))
        store.apply(work(Rows(USER).upsert(6, 7, "a", 8, None)))
        store.apply(work(Rows(USER).delete(7, 7)))
        assert contents(store, BADGE) == {1: (7, 5)}
    assert database.execute("select what from seen") == [("awake",)]


def test_with_foreign_keys_awake_parents_come_first_and_go_last(database: Database) -> None:
    database.execute(_FAMILY)
    with opened(database, USER, BADGE, session_replication_role="origin") as store:
        store.apply(
            work(
                Rows(BADGE).upsert(5, 1, 7).upsert(5, 2, 8),
                Rows(USER).upsert(5, 7, "a", 8, "").upsert(5, 8, "b", None, ""),
            )
        )
        assert contents(store, BADGE) == {1: (7, 5), 2: (8, 5)}
        store.apply(work(Rows(USER).delete(6, 7).upsert(6, 9, "c", 8, ""), Rows(BADGE).upsert(6, 1, 9)))
        assert contents(store, BADGE) == {1: (9, 6), 2: (8, 5)}
        with pytest.raises(Rejected) as refused:
            store.apply(work(Rows(BADGE).upsert(7, 3, 77).upsert(7, 4, 9)))
        assert (refused.value.table, refused.value.rows) == ("public.badges", (0,))
        store.apply(work(Rows(USER).upsert(8, 8, "b", None, "").table(truncated=7), Rows(BADGE).table(truncated=7)))
        assert contents(store, BADGE) == {}
        assert list(contents(store, USER)) == [8]


def test_a_row_that_others_refer_to_is_never_taken_out_for_a_moment(database: Database) -> None:
    database.execute(_FAMILY)
    with opened(database, USER, BADGE, session_replication_role="origin") as store:
        two = Rows(USER).upsert(5, 1, "a", None, "").upsert(5, 2, "b", None, "")
        store.apply(work(two))
        store.apply(work(Rows(BADGE).upsert(5, 1, 1)))
        # Row 2 steps aside for row 1, which a badge refers to and which is updated in place.
        store.apply(work(Rows(USER).upsert(6, 1, "b", None, "").upsert(6, 2, "c", None, "")))
        assert contents(store, BADGE) == {1: (1, 5)}
        store.apply(work(Rows(BADGE).upsert(7, 2, 2)))
        with pytest.raises(Rejected) as refused:
            store.apply(work(Rows(USER).upsert(8, 1, "c", None, "").upsert(8, 2, "b", None, "")))
        assert refused.value.rows == (0, 1)
        assert contents(store, BADGE) == {1: (1, 5), 2: (2, 7)}
        database.execute(
            "alter table users drop constraint users_email_key;"
            "alter table users add unique (email) deferrable initially immediate"
        )
        store.apply(work(Rows(USER).upsert(8, 1, "c", None, "").upsert(8, 2, "b", None, "")))
        assert contents(store, USER) == {1: ("c", None, "", 8), 2: ("b", None, "", 8)}
        assert contents(store, BADGE) == {1: (1, 5), 2: (2, 7)}


def test_deferrable_foreign_keys_may_point_in_a_circle(database: Database) -> None:
    database.execute(
        "create table users (id bigint primary key, email text, boss bigint references users deferrable, bio text)"
    )
    with opened(database, USER, session_replication_role="origin") as store:
        store.apply(work(Rows(USER).upsert(5, 1, "a", 2, "").upsert(5, 2, "b", 1, "")))
        assert sorted(contents(store, USER)) == [1, 2]


def test_triggers_that_refuse_a_row_park_it(database: Database) -> None:
    database.execute(
        "create table item (id bigint primary key, name text, amount numeric(12,2));"
        "create function no() returns trigger language plpgsql as $$"
        " begin if new.name = 'bad' then raise exception 'not %', new.name; end if; return new; end $$;"
        "create trigger no before insert on item for each row execute function no()"
    )
    with opened(database, ITEM, session_replication_role="origin") as store:
        with pytest.raises(Rejected) as refused:
            store.apply(work(Rows().upsert(5, 1, "good", None).upsert(5, 2, "bad", None)))
        assert refused.value.rows == (1,)
        assert "bad" not in str(refused.value)


def test_checks_of_an_adopted_table_park_rows(database: Database) -> None:
    database.execute("create table item (id bigint primary key, name text check (name <> 'bad'), amount numeric(12,2))")
    with opened(database, ITEM) as store:
        rows = Rows()
        for i in range(50):
            rows.upsert(5, i, "bad" if i in (7, 31) else "good", None)
        rows.partial(5, 60, "bad", None, unchanged=["amount"])
        with pytest.raises(Rejected) as refused:
            store.apply(work(rows))
        assert refused.value.rows == (7, 31)  # the partial row has nothing to complete, so it is not written at all
        assert contents(store) == {}


def test_a_role_that_may_not_silence_triggers_is_told_so_where_there_are_some(database: Database) -> None:
    database.execute(
        "create role poor login; create schema shop authorization poor;"
        "create schema syncline_target authorization poor;"
        "set role poor; create table shop.users (id bigint primary key, email text, boss bigint, bio text);"
        "create table shop.badges (id bigint primary key, owner bigint references shop.users)"
    )
    user, badge = (table_of(s.name, *s.columns[1:], namespace="shop") for s in (USER, BADGE))
    dsn = database.dsn.replace("postgres@", "poor@")
    with opened(database, dsn=dsn) as store:
        with pytest.raises(Misconfigured, match="foreign keys") as refused:
            store.migrate(badge)
        assert refused.value.code == "SL-POSTGRES-TRIGGERS"
        database.execute("grant set on parameter session_replication_role to poor")
    with opened(database, user, badge, dsn=dsn) as store:
        store.apply(work(Rows(badge).upsert(5, 1, 7)))
        assert contents(store, badge) == {1: (7, 5)}
    database.execute("drop owned by poor; drop role poor")


def test_amounts_and_columns_of_others_survive_every_kind_of_write(database: Database) -> None:
    database.execute("create table item (id bigint primary key, name text, mine int default 1, amount numeric(12,2))")
    with opened(database, ITEM) as store:
        store.apply(work(Rows().upsert(5, 1, "one", Decimal(1)).upsert(5, 2, "two", Decimal(2))))
        database.execute("update item set mine = id * 10")
        store.apply(work(Rows().upsert(6, 1, "ONE", Decimal(1)).partial(6, 2, None, Decimal(3), unchanged=["name"])))
        assert database.execute("select id, name, mine from item order by id") == [(1, "ONE", 10), (2, "two", 20)]
