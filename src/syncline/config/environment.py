"""Settings from environment variables: ``SYNCLINE_LOG__PATH``, and the names under which other systems' documents
know some of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from syncline.capture import DEFAULT_SOURCE
from syncline.capture.settings import POSTGRES_PARTS, PostgresSettings, SourceSettings
from syncline.config.document import Layer, Place, Problem
from syncline.config.layers import SHORTHANDS
from syncline.config.tree import source_settings, store_settings
from syncline.errors import Misconfigured
from syncline.patterns import qualified
from syncline.stores import STORES

__all__ = ["DOCUMENTED", "PREFIX", "connection_parts", "variables"]

PREFIX = "SYNCLINE_"

# Names from documents of systems that Syncline replaces. Those of a store are declared by its configuration class
# (`environment_names`).
DOCUMENTED: dict[str, Place] = {
    "CDC_MAX_BATCH_SIZE": ("source", "batch_rows"),
    "CDC_MONITORED_TABLES": ("source", "monitored_tables"),
    "CDC_REPLICATION_SLOT_NAME": ("source", "slot"),
    "DATA_SYNC_BATCH_SIZE": ("apply", "max_rows"),
    "LOG_LEVEL": ("logging", "level"),
    "POSTGRES_REPLICATION_URL": ("source", "replication_dsn"),
    "POSTGRES_SCHEMA": ("control", "schema"),
    "SYNC_BATCH_SIZE": ("apply", "max_rows"),
}

# SYNCLINE_CONFIG names the file; Kubernetes sets the second and third kind for a service called "syncline"; the others
# are for the embedded servers and the test suite.
_NOT_SETTINGS = re.compile(
    r"SYNCLINE_(CONFIG|SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?|(TEST|SOAK|PG_BINARIES)_\w+|SERVERS_DIR)\Z"
)


def variables(environment: Mapping[str, str], base: Layer) -> tuple[Layer, list[Problem]]:
    """What the environment says, on top of ``base``. Empty variables count as not set."""
    layer, problems = Layer(), []
    given = {name: value for name, value in sorted(environment.items()) if value}
    places: list[tuple[str, Place]] = [
        (n, tuple(n.removeprefix(PREFIX).lower().split("__"))) for n in given if _is_ours(n)
    ]
    places += [(name, place) for name, place in DOCUMENTED.items() if name in given]
    stores, more = _store_places(given, base)
    for name, place in [*places, *stores]:
        problems += _put(layer, place, name, _qualified(name, given[name]))
    for name, (_, target, _) in stores:
        if target not in (base.values.get("targets") or {}):  # named like its type, see _store_places
            problems += _put(layer, ("targets", target, "type"), name, str(target))
    return layer, problems + more


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX) and len(name) > len(PREFIX) and not _NOT_SETTINGS.match(name)


def _qualified(name: str, value: str) -> str:
    """CDC_MONITORED_TABLES names tables of the schema public without saying so."""
    if name != "CDC_MONITORED_TABLES":
        return value
    tables = [table.strip() for table in value.split(",") if table.strip()]
    return ",".join(map(qualified, tables))


def _put(layer: Layer, place: Iterable[str | int], name: str, value: str) -> list[Problem]:
    """Set one value; two variables that say different things about one setting are refused."""
    *path, last = (str(part) for part in place)
    section, origin = layer.values, f"env {name}"
    for depth, part in enumerate(path):
        layer.origins.setdefault(tuple(path[: depth + 1]), origin)
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            return [Problem(origin, "another variable gives a value to the section that this one belongs to.")]
    whole = (*path, last)
    if section.get(last, value) != value:
        return [Problem(origin, f"contradicts {layer.origins[whole]}: both set {'.'.join(whole)}. Unset one.")]
    section[last] = value
    layer.origins[whole] = origin
    return []


def _store_places(given: Mapping[str, str], base: Layer) -> tuple[list[tuple[str, Place]], list[Problem]]:
    """Places of the variables that stores declare: of the target of that type, or of a new one if there is none."""
    found: list[tuple[str, Place]] = []
    problems: list[Problem] = []
    targets = base.values.get(SHORTHANDS["target"])
    targets = targets if isinstance(targets, dict) else {}
    for kind in STORES:
        mine = [name for name, target in targets.items() if isinstance(target, dict) and target.get("type") == kind]
        names = [name for name in given if name.startswith(f"{kind.upper()}_")]
        if not names or (targets and not mine):
            continue
        declared = _declared(kind)
        known = [name for name in names if name in declared]
        if len(mine) > 1 and known:
            problems.append(
                Problem(f"env {known[0]}", f"fits several targets ({', '.join(mine)}): use {PREFIX}TARGETS__...")
            )
            continue
        target = mine[0] if mine else kind
        found += [(name, ("targets", target, declared[name])) for name in known]
    return found, problems


def _declared(kind: str) -> Mapping[str, str]:
    try:
        return getattr(store_settings(kind), "environment_names", {})
    except Misconfigured:  # its driver is missing: these variables are meant for something else
        return {}


def connection_parts(environment: Mapping[str, str], base: Layer) -> Layer:
    """Addresses of which the environment holds the parts, where the file gives none: that of the only source. Where it
    is no PostgreSQL, POSTGRES_HOST, _PORT, _DB, _USER and _PASSWORD are the control schema's database, and the dsn of
    the only target that has one. The variables of a container must not override a file."""
    sources: Any = base.values.get(SHORTHANDS["source"]) or {}
    if not isinstance(sources, dict) or len(sources) > 1 or not all(isinstance(s, dict) for s in sources.values()):
        return Layer()
    name, source = next(iter(sources.items())) if sources else ("main", dict[str, Any]())
    settings = source_settings(source.get("type", DEFAULT_SOURCE))
    layer = Layer()
    if settings.address and settings.address not in source:
        _put_address(layer, environment, settings, ("sources", name, settings.address))
    if settings.address_parts and settings.address_parts != POSTGRES_PARTS:
        for place in _other_addresses(base):
            _put_address(layer, environment, PostgresSettings, place)
    return layer


def _put_address(layer: Layer, environment: Mapping[str, str], kind: type[SourceSettings], place: Place) -> None:
    """Unless what says where it is (a host, or a database) is missing among the parts."""
    names = {name: part for name, part in kind.address_parts.items() if environment.get(name)}
    if {"host", "dbname"} & set(names.values()):
        address = kind.address_of({part: environment[name] for name, part in names.items()})
        _put(layer, place, ", ".join(names), address)


def _other_addresses(base: Layer) -> list[Place]:
    """Of the control schema and of the only target with a ``dsn``, where the file gives none."""
    control, targets = base.values.get("control") or {}, base.values.get("targets") or {}
    found: list[Place] = [] if not isinstance(control, dict) or "dsn" in control else [("control", "dsn")]
    takers = [
        name
        for name, target in (targets.items() if isinstance(targets, dict) else ())
        if isinstance(target, dict) and "dsn" in _settings_of_target(target)
    ]
    if len(takers) == 1 and "dsn" not in targets[takers[0]]:
        found.append(("targets", takers[0], "dsn"))
    return found


def _settings_of_target(target: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return store_settings(target["type"]).model_fields
    except (KeyError, Misconfigured):  # which validation reports
        return {}
