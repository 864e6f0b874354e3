"""The statements of :class:`~syncline.catalog.repository.ControlSchema`, built once.

Parameters whose name would be a column's in an UPDATE's SET carry a trailing underscore.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Interval,
    LargeBinary,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.types import TypeEngine

from syncline.catalog.models import Base, SyncAlert, SyncDeadLetter, SyncGap, SyncPause, SyncRequest, SyncStatus

_TABLES = Base.metadata.tables
_NOW = func.now()


def _all(name: str, *order: Any) -> Select[Any]:
    return select(_TABLES[name]).order_by(*order)


# May the role make what a migration makes? The right on the schema is null while there is none.
MAY_CREATE = text(
    """
    select pg_is_in_recovery() as recovering, has_database_privilege(current_database(), 'create') as on_database,
      (select has_schema_privilege(oid, 'create') and has_schema_privilege(oid, 'usage')
       from pg_catalog.pg_namespace where nspname = :schema) as on_schema
    """
)

# Tables of the schema that the role may not use in full.
UNUSABLE = text(
    """
    select c.relname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = :schema and c.relkind = 'r' and c.relname like 'sync\\_%'
      and not (has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert')
               and has_table_privilege(c.oid, 'update') and has_table_privilege(c.oid, 'delete'))
    order by c.relname
    """
)

# --------------------------------------------------------------------------------------------------------- alerts


def _raise_alert() -> Insert:
    expires = _NOW + bindparam("expires_in", type_=Interval())
    new = insert(SyncAlert).values(
        code=bindparam("code"),
        severity=bindparam("severity"),
        subject=bindparam("subject"),
        message=bindparam("message"),
        remedy=bindparam("remedy"),
        expires_at=expires,
    )
    return new.on_conflict_do_update(
        index_elements=["code", "subject"],
        index_where=SyncAlert.resolved_at.is_(None),
        set_={
            "severity": new.excluded.severity,
            "message": new.excluded.message,
            "remedy": new.excluded.remedy,
            "expires_at": new.excluded.expires_at,
            "last_seen_at": _NOW,
            "occurrences": SyncAlert.occurrences + 1,
        },
    )


RAISE_ALERT = _raise_alert()
RESOLVE_ALERT = (
    update(SyncAlert)
    .where(
        SyncAlert.code == bindparam("code_"),
        SyncAlert.subject == bindparam("subject_"),
        SyncAlert.resolved_at.is_(None),
    )
    .values(resolved_at=_NOW)
)
ALERTS = _all("sync_alerts", SyncAlert.id.desc())
OPEN_ALERTS = ALERTS.where(
    SyncAlert.resolved_at.is_(None), or_(SyncAlert.expires_at.is_(None), SyncAlert.expires_at > _NOW)
)

# --------------------------------------------------------------------------------------------------- dead letters

LETTER_FIELDS: dict[str, TypeEngine[Any]] = {
    "source": Text(),
    "target": Text(),
    "table_name": Text(),
    "key_hash": LargeBinary(),
    "incarnation": Integer(),
    "version": BigInteger(),
    "ordinal": BigInteger(),
    "operation": Text(),
    "code": Text(),
    "reason": Text(),
    "payload": LargeBinary(),
    "partial": Boolean(),
}


def _park() -> Insert:
    arrays: list[ColumnElement[Any]] = [bindparam(name, type_=ARRAY(kind)) for name, kind in LETTER_FIELDS.items()]
    letters = func.unnest(*arrays).table_valued(*LETTER_FIELDS).render_derived(name="letter")
    new = insert(SyncDeadLetter).from_select(list(LETTER_FIELDS), select(letters))
    return new.on_conflict_do_nothing().execution_options(preserve_rowcount=True)


PARK = _park()
SUPERSEDE = (
    update(SyncDeadLetter)
    .where(
        SyncDeadLetter.target == bindparam("target_"),
        SyncDeadLetter.table_name == bindparam("table_"),
        SyncDeadLetter.key_hash == func.any(bindparam("hashes", type_=ARRAY(LargeBinary()))),
        SyncDeadLetter.version <= bindparam("version_"),
        SyncDeadLetter.state == text("'parked'"),
    )
    .values(state="superseded", resolved_at=_NOW)
)
OPEN_LETTERS = (
    select(
        SyncDeadLetter.table_name,
        func.array_agg(SyncDeadLetter.key_hash.distinct()).label("hashes"),
    )
    .where(SyncDeadLetter.target == bindparam("target_"), SyncDeadLetter.state == text("'parked'"))
    .group_by(SyncDeadLetter.table_name)
)
OLDEST_LETTER = select(func.min(SyncDeadLetter.version).label("version")).where(
    SyncDeadLetter.source == bindparam("source_"),
    SyncDeadLetter.target == bindparam("target_"),
    SyncDeadLetter.state == text("'parked'"),
)
SOURCE_LETTERS = (
    select(
        SyncDeadLetter.target,
        SyncDeadLetter.table_name,
        SyncDeadLetter.key_hash,
        SyncDeadLetter.version,
        SyncDeadLetter.reason,
        SyncDeadLetter.parked_at,
        case((SyncDeadLetter.table_name == bindparam("with_payload"), SyncDeadLetter.payload)).label("payload"),
    )
    .where(
        SyncDeadLetter.source == bindparam("source_"),
        SyncDeadLetter.table_name == func.any(bindparam("tables", type_=ARRAY(Text()))),
        SyncDeadLetter.state == text("'parked'"),
    )
    .order_by(SyncDeadLetter.id)
)
COUNT_LETTERS = (
    select(SyncDeadLetter.source, SyncDeadLetter.target, func.count().label("parked"))
    .where(SyncDeadLetter.state == text("'parked'"))
    .group_by(SyncDeadLetter.source, SyncDeadLetter.target)
)
# By reason, for each table at each target: the commonest first. What only waits behind another change of its key says
# nothing of what is wrong.
PARKED = (
    select(
        SyncDeadLetter.source,
        SyncDeadLetter.target,
        SyncDeadLetter.table_name,
        SyncDeadLetter.code,
        SyncDeadLetter.reason,
        func.count().label("changes"),
    )
    .where(SyncDeadLetter.state == text("'parked'"))
    .group_by(
        SyncDeadLetter.source,
        SyncDeadLetter.target,
        SyncDeadLetter.table_name,
        SyncDeadLetter.code,
        SyncDeadLetter.reason,
    )
    .order_by(
        SyncDeadLetter.source,
        SyncDeadLetter.target,
        SyncDeadLetter.table_name,
        SyncDeadLetter.code == text("'SL-PARKED-KEY'"),
        func.count().desc(),
        SyncDeadLetter.reason,
    )
)

# --------------------------------------------------------------------------------------------------------- pauses

_PAUSE_KEY = ["source", "target", "table_name"]


def _pause() -> Insert:
    new = insert(SyncPause).values(
        {name: bindparam(name) for name in ("source", "target", "table_name", "requested_by")}
    )
    return new.on_conflict_do_update(index_elements=_PAUSE_KEY, set_={"resumed_at": null()})


def _hold() -> Any:
    """Only where a pause still covers it, whose row is locked: a resume at the same time either comes first, and there
    is nothing to hold, or comes second, and finds the position held."""
    names = ("source", "target", "table_name", "log", "held_after")
    given = {name: bindparam(name, type_=SyncPause.__table__.c[name].type) for name in names}
    covering = (
        select(*given.values())
        .select_from(SyncPause)
        .where(
            *(SyncPause.__table__.c[name].in_(["", given[name]]) for name in _PAUSE_KEY),
            SyncPause.resumed_at.is_(None),
        )
        .limit(1)
        .with_for_update(read=True)
    )
    new = insert(SyncPause).from_select(list(names), covering)
    same = SyncPause.log == new.excluded.log
    first = case((same, func.coalesce(SyncPause.held_after, new.excluded.held_after)), else_=new.excluded.held_after)
    noted = new.on_conflict_do_update(
        index_elements=_PAUSE_KEY, set_={"log": new.excluded.log, "held_after": first, "resumed_at": null()}
    )
    return noted.returning(SyncPause.held_after)


def _chosen() -> ColumnElement[bool]:
    """The pauses that the names given choose: each the same, or all where none is given."""

    def chosen(held: Any, name: str) -> ColumnElement[bool]:
        given = bindparam(name, type_=Text())
        return or_(given == text("''"), held == given)

    return and_(
        chosen(SyncPause.source, "source_"),
        chosen(SyncPause.target, "target_"),
        chosen(SyncPause.table_name, "table_"),
    )


PAUSE = _pause()
HOLD = _hold()
RESUME = (
    update(SyncPause)
    .where(_chosen(), SyncPause.held_after.is_not(None), SyncPause.resumed_at.is_(None))
    .values(resumed_at=_NOW)
)
PAUSE_AGAIN = update(SyncPause).where(_chosen(), SyncPause.resumed_at.is_not(None)).values(resumed_at=null())
UNPAUSE = delete(SyncPause).where(_chosen(), SyncPause.held_after.is_(None))
RELEASE = delete(SyncPause).where(
    SyncPause.source == bindparam("source_"),
    SyncPause.target == bindparam("target_"),
    SyncPause.table_name == bindparam("table_"),
    SyncPause.resumed_at.is_not(None),
)
PAUSES = _all(
    "sync_pauses",
    # The most specific first: they hold positions, which what is wider doesn't know.
    SyncPause.source == text("''"),
    SyncPause.target == text("''"),
    SyncPause.table_name == text("''"),
    SyncPause.source,
    SyncPause.target,
    SyncPause.table_name,
)

# ----------------------------------------------------------------------------------------------------------- gaps


def _open_gap() -> Any:
    names = ("source", "target", "table_name", "code", "reason", "from_place", "to_place")
    new = insert(SyncGap).values({name: bindparam(name) for name in names})
    widened = new.on_conflict_do_update(
        index_elements=["source", "target", "table_name", "code"],
        index_where=SyncGap.resolved_at.is_(None),
        set_={
            "reason": new.excluded.reason,
            "from_place": func.least(SyncGap.from_place, new.excluded.from_place),
            "to_place": func.greatest(SyncGap.to_place, new.excluded.to_place),
        },
    )
    return widened.returning(SyncGap.id)


OPEN_GAP = _open_gap()
RESOLVE_GAP = (
    update(SyncGap)
    .where(
        SyncGap.source == bindparam("source_"),
        SyncGap.target == bindparam("target_"),
        SyncGap.table_name == bindparam("table_"),
        or_(bindparam("code_", type_=Text()) == text("''"), SyncGap.code == bindparam("code_", type_=Text())),
        SyncGap.resolved_at.is_(None),
    )
    .values(resolved_at=_NOW)
)
GAPS = _all("sync_gaps", SyncGap.id.desc())
OPEN_GAPS = GAPS.where(SyncGap.resolved_at.is_(None))

# --------------------------------------------------------------------------------------------------------- status


def _write_status() -> Insert:
    fields = [c for c in _TABLES["sync_status"].columns if c.name != "updated_at"]
    names = [c.name for c in fields]
    given = func.jsonb_to_recordset(cast(bindparam("rows", type_=Text()), JSONB()))
    rows = given.table_valued(*(column(c.name, c.type) for c in fields)).render_derived(name="given", with_types=True)
    new = insert(SyncStatus).from_select(names, select(rows))
    changed = {name: new.excluded[name] for name in names} | {"updated_at": _NOW}
    for name in _PAUSE_KEY:
        del changed[name]
    return new.on_conflict_do_update(index_elements=_PAUSE_KEY, set_=changed)


WRITE_STATUS = _write_status()
STATUSES = _all("sync_status", SyncStatus.source, SyncStatus.target, SyncStatus.table_name).add_columns(
    func.extract("epoch", func.clock_timestamp() - SyncStatus.updated_at).cast(Double()).label("age_s")
)

# ------------------------------------------------------------------------------------------------------- requests


_REQUEST = ("id", "kind", "source", "tables", "target", "keys")


def _take(*conditions: ColumnElement[bool]) -> Any:
    waiting = (
        select(SyncRequest.id)
        .where(SyncRequest.source == bindparam("source_"), SyncRequest.done_at.is_(None), *conditions)
        .with_for_update(skip_locked=True)
    )
    taken: Update = update(SyncRequest).where(SyncRequest.id.in_(waiting)).values(taken_at=_NOW)
    return taken.returning(*(getattr(SyncRequest, name) for name in _REQUEST))


REQUEST = insert(SyncRequest).values({name: bindparam(name) for name in _REQUEST[1:]}).returning(SyncRequest.id)
TAKE = _take(SyncRequest.taken_at.is_(None))
TAKE_AGAIN = _take()
FINISH = (
    update(SyncRequest)
    .where(SyncRequest.id == bindparam("id_"))
    .values(done_at=_NOW, outcome=bindparam("outcome", type_=Text()), keys=None)
)
OUTCOMES = select(SyncRequest.id, SyncRequest.outcome).where(
    SyncRequest.id == func.any(bindparam("ids", type_=ARRAY(BigInteger()))), SyncRequest.done_at.is_not(None)
)
WITHDRAW = (
    update(SyncRequest)
    .where(SyncRequest.id == func.any(bindparam("ids", type_=ARRAY(BigInteger()))), SyncRequest.done_at.is_(None))
    .values(done_at=_NOW, outcome="withdrawn", keys=None)
)
