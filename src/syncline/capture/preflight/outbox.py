"""The outbox: is it there, may our role keep it, and does each kind of entity have a table that is captured."""

from __future__ import annotations

from collections.abc import Iterator

from syncline.capture.outbox.settings import OutboxConfig
from syncline.capture.preflight.look import Look, name
from syncline.finding import Finding

__all__ = ["check_entities", "check_installed", "check_outbox"]

_OUTBOX = """
select pg_has_role(c.relowner, 'usage') as owned, pg_get_userbyid(c.relowner) as owner
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %s and c.relname = 'sync_event_log' and c.relkind = 'p'
"""
_LEAVES = "select pubname from pg_publication where pubname = %s and not pubviaroot"
_CODE = "SL-OUTBOX"


def check_outbox(look: Look) -> Iterator[Finding]:
    """Nothing where no event is to tell of anything."""
    outbox = look.config.outbox
    if outbox is None:
        return
    missing = list(check_installed(look, outbox))
    yield from missing
    if any(finding.code == "SL-NO-OUTBOX" for finding in missing):
        return
    publication = look.config.publication
    if look.rows(_LEAVES, publication):
        yield Finding(
            "SL-PUBLICATION",
            "error",
            f"publication {publication}",
            f"It publishes the partitions of {outbox.table} instead of the table, so no event would be found.",
            f"ALTER PUBLICATION {name(publication)} SET (publish_via_partition_root = true);",
        )
    yield from (f for f in check_entities(look, outbox) if f.severity != "ok" or not missing)


def check_installed(look: Look, outbox: OutboxConfig) -> Iterator[Finding]:
    """Is it there, and is it ours; nothing if so."""
    found = look.rows(_OUTBOX, outbox.schema_name)
    if not found:
        yield Finding("SL-NO-OUTBOX", "error", outbox.table, "It is not there.", "Run `syncline outbox install`.")
    elif not found[0]["owned"]:
        yield Finding(
            _CODE,
            "error",
            outbox.table,
            f"It belongs to {found[0]['owner']}: role {look.server.role} can neither publish it nor drop what is old.",
            f"GRANT {name(found[0]['owner'])} TO {name(look.server.role)};",
        )


def check_entities(look: Look, outbox: OutboxConfig) -> Iterator[Finding]:
    """Has each kind of entity a table that is captured."""
    captured = {table.qualified for table in look.tables}
    for kind, entity in outbox.entities.items():
        if entity is not None and entity.table not in captured:
            yield Finding(
                _CODE,
                "error",
                f"{outbox.table}, entity type {kind}",
                f"Its table {entity.table} is not captured, so its events are parked.",
                "Correct outbox.entities, or add the table to monitored_tables.",
            )
    if outbox.tables <= captured:
        yield Finding(_CODE, "ok", outbox.table, f"Events tell of {len(outbox.tables)} table(s).")
