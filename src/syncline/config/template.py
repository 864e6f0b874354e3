"""The file that `syncline init` writes: every setting, its description and its default, from the models themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from syncline.capture import DEFAULT_SOURCE
from syncline.config.tree import Config, TargetConfig, settings_of, source_settings, store_settings

__all__ = ["template"]

_HEAD = """\
# Configuration of Syncline.
#
# Lines like `#name: value` show a setting with its default: remove the # to change it. What is left out keeps its
# default. Then: `syncline check` (is this file right?), `syncline doctor` (are the servers?), `syncline run`.
#
# Any value can come from elsewhere:
#   ${NAME}                     an environment variable; ${NAME:-text} with a default
#   ${file:/run/secrets/dsn}    the text of a file; `dsn_file: /run/secrets/dsn` does the same
#   SYNCLINE_APPLY__MAX_ROWS    the environment variable that sets apply.max_rows, whatever this file says
#   syncline.production.yaml    laid over this file by --environment production
# Sizes in bytes may have a unit: 64 MiB. Relative paths are relative to the working directory.
# Several sources or targets have names: `sources: {shop: {...}, crm: {...}}` instead of `source: {...}`.
"""


def template(kind: str) -> str:
    """The text of a new ``syncline.yaml`` with one source and one target of type ``kind``.

    It loads to the defaults as it is, and just the same with every ``#name: value`` line uncommented.
    """
    source, store = source_settings(DEFAULT_SOURCE), store_settings(kind)
    sections = [
        _section("source", _about(source), _settings(source, {"dsn": "${DATABASE_URL}"})),
        _section("target", _about(store), [*_target(kind), *_settings(store, _examples(store, kind))]),
    ]
    for name, field in settings_of(Config).items():
        model = field.annotation
        if name not in {"sources", "targets"} and isinstance(model, type) and issubclass(model, BaseModel):
            sections.append(_section(name, _about(model), _settings(model, {})))
    environment = "\n".join(_setting("environment", Config.model_fields["environment"], None))
    return "\n".join([_HEAD, *sections, environment]) + "\n"


def _target(kind: str) -> Iterator[str]:
    yield from _setting("type", TargetConfig.model_fields["type"], kind)
    yield from _setting("tables", TargetConfig.model_fields["tables"], None)
    yield from _setting("sources", TargetConfig.model_fields["sources"], None)


def _section(name: str, about: str, lines: list[str]) -> str:
    return "\n".join([*_comment(about, ""), f"{name}:", *(f"  {line}" for line in lines), ""])


def _settings(model: type[BaseModel], values: dict[str, Any]) -> list[str]:
    return [line for name, field in settings_of(model).items() for line in _setting(name, field, values.get(name))]


def _setting(name: str, field: FieldInfo, value: Any) -> Iterator[str]:
    yield from _comment(field.description or "", "  ")
    if value is not None:
        yield f"{name}: {value}"
    else:
        yield f"#{name}: {_plain(field.get_default(call_default_factory=True, validated_data={}))}"


def _examples(store: type[BaseModel], kind: str) -> dict[str, Any]:
    """Something to begin with, where a store has no default, or where it wants one of several settings."""
    fields = {name: field for name, field in settings_of(store).items() if field.is_required() or field.examples}
    return {name: (field.examples or [f"analytics.{kind}"])[0] for name, field in fields.items()}


def _comment(text: str, indent: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), 118 - len(indent))]


def _about(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").partition("\n\n")[0]


def _plain(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return yaml.safe_dump([str(item) for item in value], default_flow_style=True, width=1000).strip()
    if value == {}:
        return "{}"
    if not isinstance(value, (int, float, type(None))):
        value = str(value)
    return yaml.safe_dump(value, width=1000).partition("\n")[0]
