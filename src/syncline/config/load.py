"""Loading: defaults < syncline.yaml < syncline.<environment>.yaml < environment variables < command line.

Whatever is wrong is said in one message, a line for each problem, with the place where it is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from syncline.capture import SOURCES
from syncline.config.document import Layer, Place, Problem, read_document, refuse
from syncline.config.environment import PREFIX, connection_parts, variables
from syncline.config.layers import SHORTHANDS, display, holds, origin_of, settings_at, stack
from syncline.config.tree import Config, Overruled
from syncline.errors import Misconfigured
from syncline.nearest import hint, nearest
from syncline.stores import STORES

__all__ = ["DEFAULT_FILE", "load_config"]

DEFAULT_FILE = Path("syncline.yaml")

_UNITS = {"": 1, "k": 1000, "ki": 1024}
_UNITS |= {f"{letter}{i}": (1024 if i else 1000) ** n for n, letter in enumerate("mgt", 2) for i in ("", "i")}
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmgt]?i?)b?\Z", re.IGNORECASE)


def load_config(
    path: Path | None = None,
    environment: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    variables_from: Mapping[str, str] | None = None,
) -> Config:
    """The configuration of this process.

    ``path`` is the file (else ``SYNCLINE_CONFIG``, else ``syncline.yaml``, which may be missing when the environment
    names a source); ``environment`` picks the overlay beside it (else ``SYNCLINE_ENVIRONMENT``, else the file's own
    ``environment``); ``overrides`` are dotted names and their values, as the command line gives them: no secrets.

    Raises:
        Misconfigured: with a line for each problem.
    """
    given = os.environ if variables_from is None else variables_from
    file = path or Path(given.get(f"{PREFIX}CONFIG") or DEFAULT_FILE)
    written = _files(file, environment, given)
    layer = _stacked(written, *variables(given, written))
    overruled = list(_overruled(written, layer))
    top, problems = _command_line({**(overrides or {}), **({"environment": environment} if environment else {})})
    layer = _stacked(layer, top, problems)
    refuse([problem for name in overrides or () for problem in _visible_secret(layer, name)])
    layer = _stacked(layer, connection_parts(given, layer), [])
    if not _seen(file) and not layer.values.get("sources"):
        raise Misconfigured(
            f"There is no configuration: {file} does not exist.",
            remedy="Run `syncline init` to write one, or name yours with --config.",
        )
    config = _validated(layer, file)
    config._overruled.extend(overruled)
    return config


def _overruled(written: Layer, layer: Layer) -> Iterator[Overruled]:
    """What the files say and a variable of another system's name says otherwise: nobody who reads the files would think
    of it. (``SYNCLINE_...`` says what it is for.)"""
    for place, origin in layer.origins.items():
        variable, before = origin.removeprefix("env "), written.origins.get(place)
        if variable == origin or variable.startswith(PREFIX) or before is None:
            continue
        former, now = (_value_at(one.values, place) for one in (written, layer))
        former = ",".join(map(str, former)) if isinstance(former, list) else former
        if not isinstance(former, dict) and str(former) != str(now):
            yield Overruled(display(layer, place), variable, before)


def _value_at(values: Any, place: Place) -> Any:
    for part in place:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _stacked(base: Layer, top: Layer, problems: list[Problem]) -> Layer:
    layer, more = stack(base, top)
    refuse(problems + more)
    return layer


def _files(file: Path, environment: str | None, given: Mapping[str, str]) -> Layer:
    """The main file and its overlay."""
    missing = not _seen(file)
    if missing and (file != DEFAULT_FILE):
        raise Misconfigured(
            f"The configuration file {file} does not exist.",
            remedy="Correct --config, or run `syncline init` to write one.",
        )
    layer = Layer() if missing else _stacked(Layer(), read_document(file, given), [])
    name = environment or given.get(f"{PREFIX}ENVIRONMENT") or layer.values.get("environment")
    if missing or name is None:
        return layer
    return _stacked(layer, read_document(_overlay(file, str(name)), given), [])


def _seen(file: Path) -> bool:
    """Whether the file is there; one in a folder that may not be entered is, and reading it says so."""
    try:
        return file.exists()
    except PermissionError:
        return True


def _overlay(file: Path, environment: str) -> Path:
    overlay = (
        file.with_name(f"{file.stem}.{environment}{file.suffix}") if re.fullmatch(r"[\w-]+", environment) else None
    )
    if overlay is not None and overlay.exists():
        return overlay
    prefix = f"{file.stem}."
    known = sorted(p.stem.removeprefix(prefix) for p in file.parent.glob(f"{prefix}*{file.suffix}") if p != file)
    raise Misconfigured(
        f"Environment {environment} has no file {file.stem}.{environment}{file.suffix} beside {file.name}.",
        remedy=f"There are: {', '.join(known)}." if known else "Write it, or leave the environment out.",
    )


def _command_line(overrides: Mapping[str, Any]) -> tuple[Layer, list[Problem]]:
    layer, problems = Layer(), []
    for name, value in overrides.items():
        *path, last = name.split(".")
        section: Any = layer.values
        for part in path:
            section = section.setdefault(part, {}) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            problems.append(Problem("command line", f"{name}: {'.'.join(path)} has a value of its own already."))
            continue
        section[last] = value
        layer.origins[(*path, last)] = "command line"
    return layer, problems


def _visible_secret(layer: Layer, name: str) -> Iterator[Problem]:
    """Every user of a machine sees the arguments of its processes (Guarantee 11), so no secret may be among them."""
    first, *rest = name.split(".")
    many = SHORTHANDS.get(first)
    if many is not None:
        named = list(layer.values.get(many) or ())
        rest = [named[0] if len(named) == 1 else "main", *rest]
    field = _field(layer.values, (many or first, *rest))
    if field is not None and holds(field, SecretStr):
        variable = PREFIX + name.replace(".", "__").upper()
        remedy = f"set environment variable {variable}, or {name}_file to a file that holds it"
        yield Problem("command line", f"{name} is a secret, and `ps` shows it to everybody: {remedy}.")


def _validated(layer: Layer, file: Path) -> Config:
    problems: list[Problem] = []
    layer.values = _coerced(layer, layer.values, (), problems)
    refuse(problems)
    try:
        config = Config.model_validate(layer.values)
    except ValidationError as error:
        problems = [_problem(layer, details, file) for details in error.errors(include_url=False)]
    except Misconfigured as error:
        raise Misconfigured(f"{file.name}: {error.message}", remedy=error.remedy) from error
    refuse(problems)
    config._provenance.update({_dotted(place): origin for place, origin in layer.origins.items()})
    return config


def _coerced(layer: Layer, value: Any, place: Place, problems: list[Problem]) -> Any:
    """Lists from "a, b", sizes from "32 MiB", null from "null", the home folder from "~": text is what the environment
    and references give."""
    if isinstance(value, dict):
        return {key: _coerced(layer, inner, (*place, key), problems) for key, inner in value.items()}
    field = _field(layer.values, place)
    if not isinstance(value, str) or field is None:
        return value
    text = value.strip()
    if not text and holds(field, SecretStr):
        problems.append(Problem(origin_of(layer, place), _empty(layer, place, field)))
    if text in {"null", "~"} and holds(field, type(None)):
        return None
    if holds(field, tuple):
        return [part.strip() for part in text.strip("[]").split(",") if part.strip()]
    if holds(field, Path) and text.startswith("~"):
        return _at_home(layer, text, place, problems)
    size = _SIZE.match(text) if holds(field, int) and str(place[-1]).endswith("_bytes") else None
    if size:
        return int(float(size["number"]) * _UNITS.get(size["unit"].lower(), 1))
    return value


def _empty(layer: Layer, place: Place, field: FieldInfo) -> str:
    """An empty secret is one that was forgotten: libpq would take it for the local socket, a store for no login."""
    instead = " Write `null` where there is none." if holds(field, type(None)) else ""
    return f"{display(layer, place)} is empty. {field.description or ''}{instead}"


def _at_home(layer: Layer, text: str, place: Place, problems: list[Problem]) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        message = f"{display(layer, place)}: there is no home folder of {user}. Write the path in full, or ./{user}."
        problems.append(Problem(origin_of(layer, place), message))
        return Path(text)


def _field(values: Mapping[str, Any], place: Place) -> FieldInfo | None:
    return (settings_at(values, place[:-1]) or {}).get(str(place[-1])) if place else None


def _problem(layer: Layer, details: ErrorDetails, file: Path) -> Problem:
    """One of pydantic's errors as a sentence, with where it is written."""
    place: Place = details["loc"]
    kind, context = details["type"], details.get("ctx") or {}
    where = origin_of(layer, place) or file.name
    name = display(layer, place)
    if kind == "extra_forbidden":
        return Problem(where, f"{name} is not a setting.{_nearest(layer, place, where)}")
    if kind == "missing" and place == ("sources",):
        return Problem(where, "there is no source: `source:` with `dsn:` below it names the database to follow.")
    if kind == "missing":
        field = _field(layer.values, place)
        return Problem(where, f"{name} is missing. {(field and field.description) or ''}".rstrip())
    if kind == "no_store":
        return _unknown_type(layer, place, "target", STORES)
    if kind == "no_source_type":
        return _unknown_type(layer, place, "source", SOURCES)
    if "target" in context:
        return Problem(origin_of(layer, ("targets", str(context["target"]), "sources")), f"{details['msg']}.")
    if place and place[-1] == "[key]":
        rule = "a name is lower-case letters, digits and _, and starts with a letter"
        return Problem(origin_of(layer, place[:-1]), f"{display(layer, place[:-1])}: {rule}.")
    return Problem(where, f"{name or 'configuration'} {_said(layer, place, details)}")


def _said(layer: Layer, place: Place, details: ErrorDetails) -> str:
    """What is allowed and what was given; secrets and whatever came from the environment are not repeated."""
    if details["type"] in {"model_type", "dict_type", "model_attributes_type"}:
        return "must hold settings of its own, `name: value` on indented lines below it."
    text = details["msg"].removeprefix("Value error, ").replace("Input should", "must").replace("String should", "must")
    text = "must be a path" if details["type"] == "path_type" else text
    text = text.replace("Keys should", "must").replace("Dictionary should", "must")
    item = isinstance(place[-1], int) if place else False
    field = _field(layer.values, place[:-1] if item else place)
    secret = field is None or holds(field, SecretStr) or " with $" in origin_of(layer, place)
    given = "" if secret or not _repeatable(details["input"]) else f", not {details['input']!r:.60}"
    about = f" ({field.description.rstrip('.')})" if field is not None and field.description else ""
    return f"{text}{given}{about}."


def _repeatable(value: Any) -> bool:
    """Whether a value that is wrong may be shown: not what may be an address with a login (Guarantee 11)."""
    return not isinstance(value, dict) and "@" not in str(value)


def _nearest(layer: Layer, place: Place, where: str) -> str:
    known = list(settings_at(layer.values, place[:-1]) or ())
    if len(place) == 1:
        known = [*known, *SHORTHANDS]
    if where.startswith(f"env {PREFIX}"):
        return _nearest_variable(layer, where.removeprefix("env "))
    close = nearest(str(place[-1]), known)
    if close is not None:
        return f" Did you mean {close}?"
    elsewhere = [display(layer, p) for p in _all_places(layer) if p[-1] == place[-1]]
    if elsewhere:
        return f" Did you mean {elsewhere[0]}?"
    return f" Known here: {', '.join(known)}." if known else " It holds a value, not settings."


def _nearest_variable(layer: Layer, name: str) -> str:
    names = [PREFIX + display(layer, p).replace(".", "__").upper() for p in _all_places(layer)]
    close = nearest(name, names)
    return f" Did you mean {close}?" if close else " Unset it; `syncline config` lists all settings."


def _all_places(layer: Layer) -> list[Place]:
    """Every setting that this configuration could hold, with the sources and targets that it has."""
    found: list[Place] = []
    for key in Config.model_fields:
        named = layer.values.get(key) if key in SHORTHANDS.values() else None
        sections: list[Place] = [(key, name) for name in named] if isinstance(named, dict) else [(key,)]
        for section in sections:
            inner = settings_at(layer.values, section)
            found += [(*section, name) for name in inner] if inner else [section]
    return found


def _unknown_type(layer: Layer, place: Place, what: str, known: Collection[str]) -> Problem:
    section = layer.values[str(place[0])][place[1]]
    given = section.get("type") if isinstance(section, dict) else None
    where = origin_of(layer, (*place, "type"))
    shown = f" {given!r:.60}" if _repeatable(given) else " of this name"
    about = f"{display(layer, (*place, 'type'))}: there is no {what} type{shown}."
    own = " A store of your own is module:Class." if what == "target" and {".", ":"} & set(str(given)) else ""
    return Problem(where, f"{about} {hint(str(given), known)}{own}")


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place)
