"""What a row of a table becomes, as commands that people know: for `syncline mapping show`."""

from __future__ import annotations

from collections.abc import Iterator

from syncline.change import TableSchema
from syncline.stores.redis.layout import DocumentWrite, HashWrite, Write
from syncline.stores.redis.template import Template

__all__ = ["commands"]


def commands(schema: TableSchema, writes: tuple[Write, ...]) -> Iterator[str]:
    """One command for each thing that a row writes, with columns in braces; a deletion undoes them."""
    for write in writes:
        key = _shown(write.key, schema)
        if isinstance(write, HashWrite):
            fields = " ".join(f"{name} {{{name}}}" for name in (schema.columns[f].name for f in write.fields))
            yield f"HSET {key} {fields}{_lives(key, write.ttl_s)}"
        elif isinstance(write, DocumentWrite):
            members = ", ".join(schema.columns[f].name for f in write.fields)
            yield f"SET {key} {{json of {members}}} KEEPTTL{_lives(key, write.ttl_s)}"
        else:
            yield f"ZADD {key} {{{schema.columns[write.score].name}}} {_shown(write.member, schema)}"


def _shown(template: Template, schema: TableSchema) -> str:
    return "".join(p.decode() if isinstance(p, bytes) else "{" + schema.columns[p].name + "}" for p in template.pieces)


def _lives(key: str, ttl_s: int) -> str:
    return f"; EXPIRE {key} {ttl_s} NX" if ttl_s else ""
