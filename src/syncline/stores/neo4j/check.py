"""What stands in the way of a Neo4j database, found without changing anything: the contract's optional ``check``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from syncline.errors import Misconfigured, SynclineError
from syncline.finding import Finding, Severity
from syncline.stores.neo4j.database import Database, Neo4jConfig
from syncline.stores.neo4j.tables import BOOKKEEPING, FORMAT, STORE, written_format

__all__ = ["check"]


def check(config: Neo4jConfig) -> Iterator[Finding]:
    """Server, version, database, rights and settings; findings without a subject."""
    try:
        database = Database(config)
    except SynclineError as error:
        yield _found("SL-NEO4J", "error", error.message, error.remedy)
        return
    with closing(database):
        try:
            database.greet()
        except SynclineError as error:
            code = "SL-NEO4J" if error.code == Misconfigured.code else error.code
            yield _found(code, "error", error.message, error.remedy)
            return
        yield from _in_the_clear(config)
        yield from _rights(database)
        yield from _format(database)
        yield from _settings(database)
        yield _found("SL-NEO4J", "ok", f"{database.server} answers at {config.uri}.")


def _found(code: str, severity: Severity, message: str, remedy: str = "") -> Finding:
    return Finding(code, severity, "", message, remedy)


def _in_the_clear(config: Neo4jConfig) -> Iterator[Finding]:
    scheme, _, address = config.uri.partition("://")
    local = address.startswith(("127.", "localhost", "[::1]"))
    if "+" not in scheme and not local:
        yield _found(
            "SL-NEO4J-CLEAR",
            "warning",
            f"Rows and the password go to {config.uri} unencrypted.",
            f"Give the server a certificate, and write the uri with {scheme}+s://.",
        )


def _rights(database: Database) -> Iterator[Finding]:
    """Write and constrain as ``open`` would, and keep nothing of it: the server answers now what it would then."""
    probes = {"write nodes": f"CREATE (n:{STORE}) DELETE n"}
    if not database.compatible:  # elsewhere a constraint stands outside of transactions
        probes["create constraints"] = BOOKKEEPING[0].create
    for right, statement in probes.items():
        try:
            with database.transaction(keep=False) as tx:
                tx.write(statement)
        except Misconfigured as error:
            remedy = f"Grant the target's user the right to {right} in this database."
            yield _found("SL-NEO4J-RIGHTS", "error", f"The user may not {right}: {error.message}", remedy)


def _format(database: Database) -> Iterator[Finding]:
    written = written_format(database)
    if written is not None and written > FORMAT:
        message = f"The database was written by a newer Syncline (format {written}, this one knows {FORMAT})."
        yield _found("SL-NEO4J", "error", message, "Upgrade Syncline.")


def _settings(database: Database) -> Iterator[Finding]:
    """Settings that end works, or lose what was acknowledged. Only Neo4j itself shows them."""
    try:
        rows = database.run(
            "SHOW SETTINGS YIELD name, value WHERE name IN ['db.transaction.timeout', 'db.lock.acquisition.timeout',"
            " 'server.databases.default_to_read_only', 'db.tx_log.buffer.size'] RETURN name, value"
        )
    except SynclineError:
        yield _found("SL-NEO4J-SETTINGS", "info", "The server does not show its settings, so they were not looked at.")
        return
    values = {str(name): str(value) for name, value in rows}
    if values.get("server.databases.default_to_read_only") == "true":
        yield _found(
            "SL-NEO4J-READONLY",
            "error",
            "The server opens its databases read-only (server.databases.default_to_read_only).",
            "Set it to false.",
        )
    for name in ("db.transaction.timeout", "db.lock.acquisition.timeout"):
        seconds = _seconds(values.get(name, "0s"))
        if 0 < seconds < 30:
            yield _found(
                "SL-NEO4J-TIMEOUT",
                "warning",
                f"The server ends transactions after {values[name]} ({name}); a large batch may take longer.",
                f"Raise {name} to a minute or more, or to 0.",
            )


def _seconds(text: str) -> float:
    """A duration as the server prints it, such as ``1m30s`` or ``500ms``."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    total, number, unit = 0.0, "", ""
    for character in text + "0":
        if character.isdigit() and unit:
            total += float(number) * units.get(unit, 0.0)
            number, unit = "", ""
        if character.isdigit():
            number += character
        else:
            unit += character
    return total
