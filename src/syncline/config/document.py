"""YAML with the place of every key: a file as plain values, and where each of them is written.

Scalars follow the core schema of YAML 1.2, so that ``no``, ``12:30`` and ``2024-01-01`` stay text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from syncline.errors import Misconfigured

__all__ = ["Layer", "Place", "Problem", "interpolate", "read_document", "refuse"]

Place = tuple[str | int, ...]

_MAX_NODES = 100_000  # nested aliases multiply: a file of one kilobyte can hold billions of values
_REFERENCE = re.compile(
    r"\$(?:\$\{|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\{file:(?P<file>[^}]+)\})"
)
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it is written, what it is, and what to do."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


def refuse(problems: list[Problem]) -> None:
    """Raise all problems in one message, a line each.

    Raises:
        Misconfigured: there is at least one.
    """
    if problems:
        raise Misconfigured("\n".join(dict.fromkeys(str(p) for p in problems)))


@dataclass(slots=True)
class Layer:
    """Values from one place of configuration, and where each key is written."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Place, str] = field(default_factory=dict)


def read_document(path: Path, environment: Mapping[str, str]) -> Layer:
    """Read one YAML file; ``${VAR}``, ``${VAR:-default}`` and ``${file:/path}`` are replaced in its values.

    Raises:
        Misconfigured: unreadable, not YAML, not a mapping, a key twice, or a variable that is not set.
    """
    reader = _Reader(path.name, environment)
    root = _compose(path)
    layer = Layer()
    if root is None or (isinstance(root, yaml.ScalarNode) and _scalar(root) is None):
        return layer
    if not isinstance(root, yaml.MappingNode):
        raise Misconfigured(f"{path.name}:{_line(root)}: the file must hold settings, `name: value`, at its top.")
    layer.values = reader.mapping(root, (), ())
    layer.origins = reader.origins
    refuse(reader.problems)
    return layer


def _compose(path: Path) -> yaml.Node | None:
    try:
        return yaml.compose(path.read_bytes(), Loader=yaml.SafeLoader)
    except OSError as error:
        raise Misconfigured(f"{path} can't be read: {error.strerror or error}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise Misconfigured(
            f"{path.name}{where}: this is not YAML: {_unquoted(error.problem or error.context or '')}.",
            remedy="Look at the indentation, and quote values that hold `: `, `#`, `*` or `{`.",
        ) from error
    except (yaml.YAMLError, UnicodeError) as error:
        first = str(error).splitlines()[0]
        raise Misconfigured(f"{path.name}: this is not YAML: {first}.", remedy="It must be text in UTF-8.") from error
    except RecursionError as error:
        raise Misconfigured(f"{path.name}: this is nested too deeply.") from error


def _unquoted(problem: str) -> str:
    """The parser's words without what they quote of the file, such as the name of an alias that was meant to be a
    password (Guarantee 11); single characters and its own tokens in angle brackets stay."""
    return re.sub(r"(['\"])(?!<)[^'\"]{3,}\1", "...", problem)


class _Reader:
    """Turns the nodes of one file into values, noting places and problems."""

    def __init__(self, file: str, environment: Mapping[str, str]) -> None:
        self._file = file
        self._environment = environment
        self._nodes = 0
        self.origins: dict[Place, str] = {}
        self.problems: list[Problem] = []

    def mapping(self, node: yaml.MappingNode, place: Place, outer: tuple[int, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        seen: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            name = self._key(key)
            if name is None:
                continue
            if key.tag == "tag:yaml.org,2002:merge":
                merged.append(value)
            elif name in seen:
                self._problem(key, f"{_dotted((*place, name))} is given twice, first in line {seen[name]}; keep one.")
            else:
                seen[name] = _line(key)
                self.origins[(*place, name)] = self._at(key)
                values[name] = self._value(value, (*place, name), (*outer, id(node)))
        for value in merged:
            self._merge(value, values, place, (*outer, id(node)))
        return values

    def _key(self, key: yaml.Node) -> str | None:
        if isinstance(key, yaml.ScalarNode):
            return str(key.value)
        self._problem(key, "a key must be a plain name.")
        return None

    def _merge(self, node: yaml.Node, values: dict[str, Any], place: Place, outer: tuple[int, ...]) -> None:
        """``<<: *anchor``: what is not given here comes from there."""
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode) or id(source) in outer:
                self._problem(source, "`<<` must be followed by an alias of a mapping.")
                continue
            inner = _Reader(self._file, self._environment)
            inner._nodes = self._nodes
            theirs = inner.mapping(source, place, outer)
            self._nodes = inner._nodes
            self.problems += inner.problems
            self.origins = inner.origins | self.origins
            values.update({key: value for key, value in theirs.items() if key not in values})

    def _value(self, node: yaml.Node, place: Place, outer: tuple[int, ...]) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES or len(outer) > 50 or id(node) in outer:
            raise Misconfigured(f"{self._at(node)}: aliases nest or repeat without end.")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, place, outer)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for number, item in enumerate(node.value):
                self.origins[(*place, number)] = self._at(item)
                items.append(self._value(item, (*place, number), (*outer, id(node))))
            return items
        return self._text(node, place) if isinstance(node, yaml.ScalarNode) else None

    def _text(self, node: yaml.ScalarNode, place: Place) -> Any:
        value = _scalar(node)
        if not isinstance(value, str) or "${" not in value:
            return value
        try:
            text, used = interpolate(value, self._environment)
        except Misconfigured as error:
            self._problem(node, f"{_dotted(place)}: {error}")
            return value
        if used:
            self.origins[place] = f"{self._at(node)} with {', '.join(used)}"
        return text

    def _at(self, node: yaml.Node) -> str:
        return f"{self._file}:{_line(node)}"

    def _problem(self, node: yaml.Node, message: str) -> None:
        self.problems.append(Problem(self._at(node), message))


def interpolate(text: str, environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """``text`` with its references replaced, and those references; ``$${`` stands for a plain ``${``.

    Raises:
        Misconfigured: a variable is not set, or a file can't be read.
    """
    used: list[str] = []

    def replace(match: re.Match[str]) -> str:
        name, file = match["name"], match["file"]
        if name is None and file is None:
            return "${"
        used.append("${" + (name or f"file:{file}") + "}")
        if file is not None:
            return read_secret(Path(file))
        value = environment.get(name, match["default"])
        if value is None:
            raise Misconfigured(
                f"environment variable {name} is not set.",
                remedy=f"Set it, or write ${{{name}:-...}} with a default.",
            )
        return value

    return _REFERENCE.sub(replace, text), used


def read_secret(path: Path) -> str:
    """The text of a file that holds one secret, without the line end behind it.

    Raises:
        Misconfigured: it can't be read.
    """
    try:
        return Path(os.path.expanduser(path)).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise Misconfigured(f"the secret's file {path} can't be read: {reason}.") from error


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if node.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.match(text) and len(text) < 100:
        return int(text)
    return float(text) if _FLOAT.match(text) else text


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place)
