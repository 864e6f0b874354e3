"""The tables of docs/configuration.md, from the models themselves: run this file to write them anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from syncline.capture import SOURCES
from syncline.capture.outbox.settings import EntityConfig, OutboxConfig
from syncline.capture.redis.settings import MemberColumn
from syncline.capture.stream.settings import StreamColumn
from syncline.config import RuleConfig, VerifyConfig
from syncline.config.tree import Config, TargetConfig, settings_of, source_settings, store_class, store_settings
from syncline.config.verification import RollingConfig
from syncline.mapping import FORMS
from syncline.mapping.settings import (
    ColumnRule,
    EndRule,
    MembersRule,
    ReferenceRule,
    TableMapping,
    ValueRule,
    VectorRule,
)
from syncline.stores import STORES

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN, END = "<!-- settings -->", "<!-- end of settings -->"


def page() -> str:
    """The page as it is."""
    return PAGE.read_text()


def written(text: str) -> str:
    """The page with tables that fit the models."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def tables() -> str:
    own = {name: field for name, field in settings_of(TargetConfig).items() if name != "store"}
    parts = [_section(f"source, `type: {kind}`", settings_of(source_settings(kind))) for kind in SOURCES]
    parts += [_section("source.outbox", settings_of(OutboxConfig))]
    parts += [_section("source.outbox.entities.<type>", settings_of(EntityConfig))]
    parts += [_section("`columns.<column>` of a source of `type: redis`", settings_of(MemberColumn))]
    parts += [_section("`columns.<column>` of a source of `type: stream`", settings_of(StreamColumn))]
    parts += [_section(f"target, `type: {kind}`", own | settings_of(store_settings(kind))) for kind in STORES]
    parts += _mappings()
    for name, field in settings_of(Config).items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            parts.append(_section(name, settings_of(model)))
            if model is VerifyConfig:
                parts.append(_section("`verify.rolling`", settings_of(RollingConfig)))
                parts.append(_section("`verify.rules.<name>`", settings_of(RuleConfig)))
    parts.append(_section("top level", {"environment": Config.model_fields["environment"]}))
    return "\n".join(parts)


# What a table may be told, by the form of the target: the models of its own and of what is written below them.
_BELOW: dict[str, dict[str, type[BaseModel]]] = {
    "rows": {},
    "graph": {"references.<column>": ReferenceRule, "from` and `to": EndRule},
    "points": {"vectors.<name>": VectorRule},
    "keys": {"hash` and `json": ValueRule, "members`, each of the list, `": MembersRule},
}


_NAMES = {"rows": "rows", "graph": "graphs", "points": "points", "keys": "keys"}


def _mappings() -> Iterator[str]:
    common = settings_of(TableMapping)
    yield _section("`tables.<table>` of any target", common)
    yield _section("`columns.<column>` of a table", settings_of(ColumnRule))
    for form, model in FORMS.items():
        kinds = ", ".join(kind for kind in STORES if store_class(kind).form == form)
        own = {name: field for name, field in settings_of(model).items() if name not in common}
        yield _section(f"`tables.<table>` of a target of {_NAMES[form]} ({kinds})", own)
        for place, below in _BELOW[form].items():
            yield _section(f"`{place}` of a table there".replace(" ``", ""), settings_of(below))


def _section(title: str, fields: dict[str, FieldInfo]) -> str:
    heading = title if "`" in title or " " in title else f"`{title}`"
    lines = [f"### {heading}", "", "| setting | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {_default(name, field)} | {field.description} |" for name, field in fields.items()]
    return "\n".join([*lines, ""])


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is dict:
        return "`{}`"
    if field.default_factory is not None:
        return "by the machine"
    return f"`{_shown(name, field.default)}`"


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{v}"' for v in value) + "]"
    if name.endswith("_bytes"):
        return next(_sizes(value), str(value))
    return str(value) if value != "" else '""'


def _sizes(value: int) -> Iterator[str]:
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power and value % 1024**power == 0:
            yield f"{value // 1024**power} {unit}"


if __name__ == "__main__":
    PAGE.write_text(written(page()))
