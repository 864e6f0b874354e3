"""What names a row of a table in the WAL, and what is wrong with it (PostgreSQL manual, ALTER TABLE)."""

from __future__ import annotations

from syncline.capture.tables import TableInfo

__all__ = ["identity_problem", "key_columns", "usable_identity"]


def key_columns(info: TableInfo) -> tuple[str, ...]:
    """The columns that name a row at every target, in the order of their index.

    The index of the replica identity where that is chosen, else the primary key. Empty when there is neither.
    """
    return info.identity_columns if info.replica_identity == "i" else info.primary_key


def usable_identity(info: TableInfo) -> str | None:
    """None when updates and deletes of the table can be told apart; else one sentence that ends with the statement
    that mends it (:func:`identity_problem` has the two apart)."""
    problem = identity_problem(info)
    return None if problem is None else ": ".join(problem)


def identity_problem(info: TableInfo) -> tuple[str, str] | None:
    """What is wrong with the table's replica identity, and the statement that mends it; None when nothing is."""
    key = key_columns(info)
    if info.replica_identity == "n":
        return "its replica identity is NOTHING, so updates and deletes name no row", _mend(info)
    if info.replica_identity == "i" and not info.identity_columns:
        return "the index of its replica identity is gone", _mend(info)
    if info.replica_identity == "f" and not key:
        return "REPLICA IDENTITY FULL without a primary key can't tell identical rows apart", _mend(info)
    if not key:
        return "it has no primary key, so updates and deletes name no row", _mend(info)
    if not info.identity_columns:
        return (
            "its primary key is deferrable (or invalid), which PostgreSQL doesn't take as replica identity",
            _identity_of_an_index(info)
            if any(c.generated for c in info.columns)
            else f"ALTER TABLE {info.sql_name} REPLICA IDENTITY FULL;",
        )
    if info.refuses_updates:
        return (
            "PostgreSQL 18 and newer refuse updates and deletes of a published table with REPLICA IDENTITY FULL and "
            f"a generated column ({info.refuses_updates})",
            _mend(info),
        )
    generated = [c.name for c in info.columns if c.name in key and c.generated]
    if generated:
        return (
            f"its key column {generated[0]} is generated and not part of what is published",
            _identity_of_an_index(info),
        )
    return _leaf_problem(info)


def _identity_of_an_index(info: TableInfo) -> str:
    return (
        "CREATE UNIQUE INDEX over plain NOT NULL columns, "
        f"then ALTER TABLE {info.sql_name} REPLICA IDENTITY USING INDEX that_index;"
    )


def _mend(info: TableInfo) -> str:
    """The statement that gives the table an identity, from what it already has."""
    if info.primary_key:
        return f"ALTER TABLE {info.sql_name} REPLICA IDENTITY DEFAULT;"
    if info.usable_index:
        return f"ALTER TABLE {info.sql_name} REPLICA IDENTITY USING INDEX {info.usable_index};"
    return f"ALTER TABLE {info.sql_name} ADD PRIMARY KEY (...);"


def _leaf_problem(info: TableInfo) -> tuple[str, str] | None:
    """A partitioned table is described to us by its root, but each old row is written as its leaf's identity says: they
    must agree, or old rows hold NULL where the root promises values."""
    for leaf in info.partition_leaves:
        if leaf.relkind == "f":
            return (
                f"its partition {leaf.sql_name} is a foreign table, whose changes are not in this server's WAL",
                f"ALTER TABLE ... DETACH PARTITION {leaf.sql_name}; or exclude the table.",
            )
        if leaf.replica_identity == info.replica_identity and set(leaf.identity_columns) == set(info.identity_columns):
            continue
        how = {"d": "DEFAULT", "f": "FULL", "i": "USING INDEX its_own_index", "n": "NOTHING"}[info.replica_identity]
        return (
            f"its partition {leaf.sql_name} has another replica identity",
            f"ALTER TABLE {leaf.sql_name} REPLICA IDENTITY {how};",
        )
    return None
