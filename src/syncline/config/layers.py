"""Layers of configuration on top of one another: canonical names, secrets from their files, later over earlier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from syncline.capture import DEFAULT_SOURCE
from syncline.capture.redis.settings import MemberColumn
from syncline.capture.settings import SourceSettings
from syncline.config.document import Layer, Place, Problem, read_secret
from syncline.config.tree import (
    Config,
    TargetConfig,
    is_store,
    settings_of,
    source_settings,
    store_settings,
    table_settings,
)
from syncline.errors import Misconfigured

__all__ = ["SHORTHANDS", "display", "holds", "origin_of", "settings_at", "stack"]

SHORTHANDS = {"source": "sources", "target": "targets"}
_ONE = {many: one for one, many in SHORTHANDS.items()}


def stack(base: Layer, top: Layer) -> tuple[Layer, list[Problem]]:
    """``top`` over ``base``: sections merge, other values are replaced; shorthands and ``..._file`` are resolved."""
    top, problems = _canonical(top, base)
    base = _without_former_types(base, top)
    kinds = _merged(base.values, top.values)
    problems += _read_secrets(top, kinds)
    replaced = {place for place in top.origins if not isinstance(_at(top.values, place), dict)}
    kept = {p: o for p, o in base.origins.items() if not any(p[:n] in replaced for n in range(1, len(p) + 1))}
    return Layer(_merged(base.values, top.values), kept | top.origins), problems


def _without_former_types(base: Layer, top: Layer) -> Layer:
    """The base without the settings of a source or store that ``top`` replaces by one of another type: what is called
    ``path`` or ``dsn`` by both means something else to each. What the former type does not know stays, to be
    refused."""
    gone: set[Place] = set()
    for many, known, shared in (
        ("sources", _source_settings, settings_of(SourceSettings)),
        ("targets", _target_settings, _target_settings(None)),
    ):
        named = base.values.get(many)
        for name, below in named.items() if isinstance(named, dict) else ():
            kind, wanted = (_at(values, (many, name, "type")) for values in (base.values, top.values))
            if isinstance(below, dict) and wanted not in (None, kind):
                former = set(known(kind)) - set(shared)
                gone |= {(many, name, key) for key in former & set(below)}
    if not gone:
        return base
    values = {many: _without(base.values.get(many), many, gone) for many in ("sources", "targets")}
    kept = {p: o for p, o in base.origins.items() if p[:3] not in gone}
    return Layer({**base.values, **{many: v for many, v in values.items() if v is not None}}, kept)


def _without(named: Any, many: str, gone: set[Place]) -> Any:
    if not isinstance(named, dict):
        return named
    return {
        name: {key: value for key, value in below.items() if (many, name, key) not in gone}
        if isinstance(below, dict)
        else below
        for name, below in named.items()
    }


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            result[key] = _merged(below, value)
        elif not (isinstance(below, dict) and value is None):  # a section with every line commented out
            result[key] = value
    return result


def _at(values: Any, place: Place) -> Any:
    for part in place:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _canonical(layer: Layer, base: Layer) -> tuple[Layer, list[Problem]]:
    """``source`` becomes ``sources.<the only one, else main>``; empty sections become mappings."""
    values, problems = dict(layer.values), []
    moved: dict[str, tuple[str, str]] = {}
    for one, many in SHORTHANDS.items():
        if one not in values:
            continue
        known = base.values.get(many)
        names = list(known) if isinstance(known, dict) else []
        name = names[0] if len(names) == 1 else "main"
        mine = values.get(many) or {}
        where = layer.origins.get((one,), "")
        if (len(names) > 1 and "main" not in names) or not isinstance(mine, dict):
            problems.append(Problem(where, f"{one} is ambiguous here: write {many}.<name> ({', '.join(names)})."))
        elif name in mine:
            problems.append(Problem(where, f"{one} and {many}.{name} are the same setting: keep one."))
        else:
            values[many] = {name: values[one], **mine}
            moved[one] = (many, name)
        del values[one]
    origins = {(*moved[str(p[0])], *p[1:]) if p[0] in moved else p: o for p, o in layer.origins.items()}
    return Layer(_filled(values), origins), problems


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        section = key in Config.model_fields and key != "environment"
        value = {} if section and value is None else value
        if key in _ONE and isinstance(value, dict):
            value = {name: {} if inner is None else inner for name, inner in value.items()}
        result[key] = value
    return result


def _read_secrets(layer: Layer, kinds: Mapping[str, Any]) -> list[Problem]:
    """Replace ``dsn_file: path`` by ``dsn`` with that file's text, for every secret setting."""
    problems: list[Problem] = []
    for place, section in list(_sections(layer.values, ())):
        known = settings_at(kinds, place) or {}
        for key in [k for k in section if k.endswith("_file")]:
            secret, where = key.removesuffix("_file"), layer.origins.get((*place, key), "")
            if key in known or secret not in known or not holds(known[secret], SecretStr):
                continue
            path = section.pop(key)
            origin = layer.origins.pop((*place, key), "")
            if secret in section:
                problems.append(Problem(where, f"{secret} and {key} are both given: keep one."))
                continue
            try:
                section[secret] = read_secret(Path(str(path)))
            except Misconfigured as error:
                section[secret] = "-"
                problems.append(Problem(where, str(error)))
            layer.origins[(*place, secret)] = f"{origin} from {path}"
    return problems


def _sections(values: dict[str, Any], place: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield (*place, key), value
            yield from _sections(value, (*place, key))


def settings_at(values: Mapping[str, Any], place: Place) -> dict[str, FieldInfo] | None:
    """The settings that the section at ``place`` may hold, under the names users write; None if it is no section."""
    match place:
        case ():
            return settings_of(Config)
        case ("sources", _):
            return _source_settings(_at(values, (*place, "type")))
        case ("targets", _):
            return _target_settings(_at(values, (*place, "type")))
        case ("sources", _, "columns", _):
            return settings_of(MemberColumn)
        case ("sources" | "targets",) | ("targets", _, "tables") | ("sources", _, "columns"):
            return None
        case ("targets", _, "tables", _, *inner):
            return _mapping_settings(_at(values, (*place[:2], "type")), inner)
    above = settings_at(values, place[:-1])
    field = (above or {}).get(str(place[-1]))
    model = _model_in(field.annotation) if field else None
    return settings_of(model) if model else None


def _source_settings(kind: object) -> dict[str, FieldInfo]:
    return settings_of(source_settings(DEFAULT_SOURCE if kind is None else kind))


def _target_settings(kind: object) -> dict[str, FieldInfo]:
    own = {name: field for name, field in settings_of(TargetConfig).items() if name != "store"}
    if not is_store(kind):
        return own
    try:
        return own | settings_of(store_settings(kind))
    except Misconfigured:  # its driver is missing, which validation reports
        return own


def _mapping_settings(kind: object, inner: Sequence[str | int]) -> dict[str, FieldInfo] | None:
    """What may be said of a table at a store of that kind; ``inner`` is the place below the table's name."""
    if not is_store(kind):
        return None
    try:
        model: type[BaseModel] | None = table_settings(kind)
    except Misconfigured:
        return None
    for part in inner:
        field = settings_of(model).get(str(part)) if model else None
        model = _model_in(field.annotation) if field else None
    return settings_of(model) if model else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def holds(field: FieldInfo, kind: type) -> bool:
    """True if a value of ``kind`` may stand in the field."""
    return any(part is kind or get_origin(part) is kind for part in _parts(field.annotation))


def _parts(annotation: Any) -> tuple[Any, ...]:
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(get_args(part)[0] if get_origin(part) is Annotated else part for part in parts)


def origin_of(layer: Layer, place: Place) -> str:
    """Where a setting, or the nearest section around it, is written."""
    for length in range(len(place), 0, -1):
        if place[:length] in layer.origins:
            return layer.origins[place[:length]]
    return ""


def display(layer: Layer, place: Place) -> str:
    """The dotted name of a place; the single source and target under their short names."""
    if len(place) > 1 and place[0] in _ONE and place[1] == "main" and len(layer.values.get(str(place[0])) or ()) == 1:
        place = (_ONE[str(place[0])], *place[2:])
    return ".".join(str(part) for part in place)
