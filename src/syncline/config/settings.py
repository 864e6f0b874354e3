"""A configuration as a flat list: every value and where it came from, secrets hidden (Guarantee 11)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, SecretStr

from syncline.capture.source import describe
from syncline.config.tree import Config, TargetConfig, settings_of

__all__ = ["Setting", "settings"]


class Setting(NamedTuple):
    """One value: its dotted name, what it is in plain JSON types (a secret as what may be shown), and its origin."""

    name: str
    value: Any
    origin: str


def settings(config: Config) -> list[Setting]:
    """Every setting of the configuration, in the order of the tree."""
    return [Setting(name, _shown(name, value), _origin(config, name)) for name, value in _walk(config, "")]


def _walk(model: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in settings_of(type(model)).items():
        attribute = next(n for n, f in type(model).model_fields.items() if f is field)
        value = getattr(model, attribute)
        if isinstance(model, TargetConfig) and name == "store":
            yield from _walk(value, prefix)
        elif isinstance(value, BaseModel):
            yield from _walk(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and all(isinstance(inner, BaseModel) for inner in value.values()):
            for key, inner in value.items():
                yield from _walk(inner, f"{prefix}{name}.{key}.")
        else:
            yield f"{prefix}{name}", value


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, SecretStr):
        return f"(hidden) {describe(value.get_secret_value())}" if name.endswith("dsn") else "(hidden)"
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _origin(config: Config, name: str) -> str:
    return config.provenance.get(name, "default")
