"""The configuration tree: frozen models, their defaults, and the description of each setting.

The descriptions are what `syncline init` writes into the file, so that the two can't drift apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, cast, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    SerializeAsAny,
    ValidationError,
)
from pydantic import model_validator as validates
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ErrorType

from syncline.capture import DEFAULT_SOURCE, SOURCES, Source
from syncline.capture.settings import SourceSettings
from syncline.config.repairing import ReconcileConfig, RepairConfig
from syncline.config.verification import VerifyConfig
from syncline.dsn import SecretDsn
from syncline.errors import Misconfigured
from syncline.log.embedded import EmbeddedLogConfig
from syncline.mapping import FORMS, Facts, TableMapping, TargetMapping
from syncline.patterns import parse_pattern
from syncline.stores import STORES

__all__ = [
    "ApplyConfig",
    "Config",
    "ControlConfig",
    "LogConfig",
    "LoggingConfig",
    "TargetConfig",
    "is_store",
    "settings_of",
    "source_class",
    "source_settings",
    "store_class",
    "store_settings",
    "table_settings",
]

_KNOWN_ERRORS = frozenset(get_args(ErrorType))
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_OF_A_STORE = ("config_class", "form", "limits")  # what the configuration and the engine ask before one is open

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")]


class LogConfig(EmbeddedLogConfig):
    """The durable log between sources and targets. Each source has a log of its own in this folder."""

    path: Path = Field(Path("syncline-data/log"), description="Folder of the log, on a local disk.")


class ApplyConfig(BaseModel):
    """How changes are handed to the targets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_rows: int = Field(50_000, ge=1, description="Rows after which a step is written to a target.")
    max_bytes: int = Field(16 * 1024 * 1024, ge=65536, description="Bytes after which a step is written.")
    max_transaction_bytes: int = Field(
        64 * 1024 * 1024,
        ge=65536,
        description="Whole source transactions up to this size are applied atomically, larger ones in parts.",
    )
    retry_base_s: float = Field(0.2, gt=0, le=60, description="First wait before a target that is away is tried again.")
    retry_max_s: float = Field(
        30.0, gt=0, le=3600, description="Longest such wait; it doubles up to here, with jitter."
    )


class ControlConfig(BaseModel):
    """Where Syncline keeps its own records: a schema in PostgreSQL, never captured itself."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_by_name=True, validate_by_alias=True
    )

    dsn: SecretDsn | None = Field(None, description="Connection to its database; null is that of the first source.")
    schema_name: str = Field(
        "syncline", alias="schema", pattern=r"^[a-z_][a-z0-9_]{0,62}$", description="Name of the schema."
    )


def _level(value: object) -> object:
    word = value.lower() if isinstance(value, str) else value
    return {"warn": "warning", "critical": "error"}.get(str(word), word)


class LoggingConfig(BaseModel):
    """What Syncline says about itself, on stderr. Row values and secrets are never part of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_level)] = Field(
        "info", description="debug, info, warning or error."
    )
    json_lines: bool = Field(False, alias="json", description="One JSON object per line instead of text.")


def source_class(kind: str) -> Any:
    """The class of the way of capturing that the configuration calls ``kind``, imported on first use.

    Raises:
        KeyError: there is no such way.
        Misconfigured: its driver is not installed.
    """
    module, _, name = SOURCES[kind].partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "syncline":
            raise
        raise Misconfigured(
            f"What sources of type {kind} need is not installed: no module {error.name}.",
            remedy=f"Run `pip install 'syncline[{kind}]'`.",
        ) from error


def source_settings(kind: object) -> type[SourceSettings]:
    """The settings of a source of that kind; of one that there is not, what all kinds share."""
    if not isinstance(kind, str) or kind not in SOURCES:
        return SourceSettings
    return cast("type[SourceSettings]", source_class(kind).config_class)


def _of_its_kind(given: Any) -> Any:
    """A source's settings as the class that its ``type`` chooses."""
    kind = given.get("type", DEFAULT_SOURCE) if isinstance(given, Mapping) else DEFAULT_SOURCE
    if isinstance(given, SourceSettings):
        return given
    if not isinstance(kind, str) or kind not in SOURCES:
        raise PydanticCustomError("no_source_type", "there is no source type of this name")
    return source_settings(kind).model_validate(given)


AnySource = Annotated[SerializeAsAny[SourceSettings], BeforeValidator(_of_its_kind)]


def is_store(kind: object) -> TypeGuard[str]:
    """Whether ``kind`` names a store: one of ours, or ``module:Class`` of somebody else's."""
    return isinstance(kind, str) and (kind in STORES or _REFERENCE.fullmatch(kind) is not None)


def store_class(kind: str) -> Any:
    """The class of the store that the configuration calls ``kind``, imported on first use.

    Raises:
        KeyError: there is no such store.
        Misconfigured: its driver is not installed, or what ``module:Class`` names is not there or no store.
    """
    if kind not in STORES and is_store(kind):
        return _class_of_others(kind)
    module, _, name = STORES[kind].partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "syncline":
            raise
        raise Misconfigured(
            f"The driver of target type {kind} is not installed: no module {error.name}.",
            remedy=f"Run `pip install 'syncline[{kind}]'`.",
        ) from error


def _class_of_others(reference: str) -> Any:
    """A store that is not part of this package: its module runs code of its own, so whatever it raises is told."""
    module, _, name = reference.partition(":")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:
        raise Misconfigured(
            f"The store {reference} can't be loaded: {type(error).__name__}: {error}.",
            remedy="Its module must be on Python's path (PYTHONPATH) and importable.",
        ) from error
    missing = [what for what in _OF_A_STORE if not hasattr(found, what)]
    if missing:
        raise Misconfigured(
            f"{reference} is no store: it has no {', '.join(missing)}.", remedy="See docs/stores/adding.md."
        )
    if found.form not in FORMS:
        raise Misconfigured(f"The store {reference} has form {found.form!r}.", remedy=f"There are: {', '.join(FORMS)}.")
    return found


def store_settings(kind: str) -> type[BaseModel]:
    """The configuration class of the store ``kind``. Raises as :func:`store_class`."""
    return cast("type[BaseModel]", store_class(kind).config_class)


def table_settings(kind: str) -> type[TableMapping]:
    """What may be said of a table at a store of that kind. Raises as :func:`store_class`."""
    return FORMS[store_class(kind).form]


def _table_settings(model: type[TableMapping], name: str, given: Any) -> Any:
    """Validated here, so that what is wrong in it is told with its place."""
    try:
        parse_pattern(name)
    except Misconfigured as error:
        said = PydanticCustomError("no_table", "{said}", {"said": str(error)})
        raise ValidationError.from_exception_data(
            name, [InitErrorDetails(type=said, loc=("tables", name), input=name)]
        ) from error
    if isinstance(given, BaseModel):
        return given
    try:
        return model.model_validate({} if given is None else given)
    except ValidationError as error:
        found = [_placed(e, ("tables", name)) for e in error.errors(include_url=False)]
        raise ValidationError.from_exception_data(error.title, found) from error


def _placed(error: ErrorDetails, place: tuple[str, ...]) -> InitErrorDetails:
    """One of pydantic's errors, deeper in the tree."""
    kind = (
        error["type"]
        if error["type"] in _KNOWN_ERRORS
        else PydanticCustomError("said", "{said}", {"said": error["msg"]})
    )
    return InitErrorDetails(type=kind, loc=(*place, *error["loc"]), input=error["input"], ctx=error.get("ctx", {}))


class TargetConfig(BaseModel):
    """One copy that is kept in step: its type, the sources it follows, and the settings of its store.

    In the file the store's settings stand beside ``type``; here they are ``store``, an object of the store's own class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    type: str = Field(description="Kind of store: " + ", ".join(STORES) + ", or module:Class of your own.")
    tables: dict[str, SerializeAsAny[TableMapping]] | None = Field(
        None,
        description="Tables that it takes, by name or pattern, and how they are mapped; null is all, as they are.",
    )
    sources: tuple[str, ...] | None = Field(None, description="Names of the sources it follows; null is all of them.")
    store: SerializeAsAny[BaseModel] = Field(description="Settings of the store.")

    def mapping(self, facts: Mapping[str, Facts]) -> TargetMapping:
        """What this target makes of the tables of one source."""
        return TargetMapping(self.tables, facts, table_settings(self.type))

    @validates(mode="before")
    @classmethod
    def _from_flat(cls, given: Any) -> Any:
        """Hand what is not ours to the class that the store declares."""
        if not isinstance(given, Mapping) or isinstance(given.get("store"), BaseModel):
            return given
        own = {key: value for key, value in given.items() if key in {"type", "tables", "sources"}}
        kind = own.get("type")
        if kind is None:
            raise PydanticCustomError("no_type", "type is required: one of {known}", {"known": ", ".join(STORES)})
        if not is_store(kind):
            raise PydanticCustomError("no_store", "there is no target type of this name")
        rest = {key: value for key, value in given.items() if key not in own}
        return {**own, "store": store_settings(kind).model_validate(rest)}

    @validates(mode="before")
    @classmethod
    def _mapped(cls, given: Any) -> Any:
        """What is said of a table depends on the kind of store."""
        tables = given.get("tables") if isinstance(given, Mapping) else None
        kind = given.get("type") if isinstance(given, Mapping) else None
        if not isinstance(tables, Mapping) or not is_store(kind):
            return given
        model = table_settings(kind)
        return {**given, "tables": {name: _table_settings(model, name, one) for name, one in tables.items()}}


@dataclass(frozen=True, slots=True)
class Overruled:
    """A setting that a file gives, and that has the value of an environment variable instead. ``origin``: its place in
    the file."""

    setting: str
    variable: str
    origin: str

    @property
    def message(self) -> str:
        """What a person is told; never the values, of which one may be secret."""
        return f"{self.setting} is what the environment variable {self.variable} says, and not what {self.origin} says."

    @property
    def remedy(self) -> str:
        """What a person can do about it."""
        return f"Unset {self.variable}, or take the setting out of the file."


class Config(BaseModel):
    """Everything that Syncline is told, in one frozen tree. Sources and targets have names; a single one is "main"."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    sources: dict[Name, AnySource] = Field(min_length=1, description="Databases whose changes are captured.")
    targets: dict[Name, TargetConfig] = Field(default_factory=dict, description="Copies that are kept in step.")
    log: LogConfig = Field(default_factory=LogConfig)
    apply: ApplyConfig = Field(default_factory=ApplyConfig)
    control: ControlConfig = Field(default_factory=ControlConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    verify: VerifyConfig = Field(default_factory=VerifyConfig)
    repair: RepairConfig = Field(default_factory=RepairConfig)
    reconcile: ReconcileConfig = Field(default_factory=ReconcileConfig)
    environment: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$",
        description="Name of this environment: syncline.<environment>.yaml is read on top of syncline.yaml.",
    )
    _provenance: dict[str, str] = PrivateAttr(default_factory=dict)
    _overruled: list[Overruled] = PrivateAttr(default_factory=list)
    _twins: dict[str, list[tuple[str, Callable[[str, str], bool]]]] = PrivateAttr(default_factory=dict)

    @property
    def provenance(self) -> Mapping[str, str]:
        """Where each setting that is not a default was given: dotted path -> "syncline.yaml:7", "env SYNCLINE_..."."""
        return self._provenance

    @property
    def overruled(self) -> tuple[Overruled, ...]:
        """Settings of the files that environment variables overrule which other systems read too (docs/names.md)."""
        return tuple(self._overruled)

    @property
    def control_dsn(self) -> str:
        """The connection string of the control schema: its own, else that of the first source."""
        dsn = self.control.dsn or next(iter(self.sources.values())).database
        assert dsn is not None  # validated
        return dsn.get_secret_value()

    def source(self, name: str) -> Source:
        """The source of this name, as the engine and the commands ask it; nothing is opened by that."""
        settings = self.sources[name]
        made = source_class(settings.type)(settings, self.control.schema_name, self.log.folder(name))
        return cast("Source", made)

    def narrowed(self, sources: Collection[str]) -> Config:
        """The same with these sources and what follows them only, and the control schema where it is."""
        chosen = {name: settings for name, settings in self.sources.items() if name in sources}
        targets = {name: target for name, target in self.targets.items() if set(self.followed_by(name)) & set(chosen)}
        control = self.control.model_copy(update={"dsn": SecretStr(self.control_dsn)})
        return self.model_copy(update={"sources": chosen, "targets": targets, "control": control})

    def followed_by(self, target: str) -> tuple[str, ...]:
        """The names of the sources that a target follows."""
        chosen = self.targets[target].sources
        return tuple(self.sources) if chosen is None else chosen

    @validates(mode="before")
    @classmethod
    def _shorthands(cls, given: Any) -> Any:
        """``source`` is the one called main, ``target`` too."""
        if not isinstance(given, Mapping):
            return given
        result = dict(given)
        for one, many in (("source", "sources"), ("target", "targets")):
            if one in result:
                result[many] = {"main": result.pop(one), **(result.get(many) or {})}
        return result

    @validates(mode="after")
    def _is_consistent(self) -> Config:
        self._check_followed()
        self._check_streams()
        self._check_control()
        self._check_claims()
        self._check_places()
        self._check_both_ways()
        self._check_rules()
        for name, source in self.sources.items():
            source.called("source" if list(self.sources) == ["main"] else f"sources.{name}")
            source.followed_by({t: c.type for t, c in self.targets.items() if name in self.followed_by(t)})
        return self

    def _check_followed(self) -> None:
        for name, target in self.targets.items():
            for source in target.sources or ():
                if source not in self.sources:
                    raise PydanticCustomError(
                        "no_source",
                        "targets.{target}.sources names {source}, which is not among the sources ({known})",
                        {"target": name, "source": source, "known": ", ".join(self.sources)},
                    )

    def _check_streams(self) -> None:
        seen: dict[tuple[str, ...], str] = {}
        for name, source in self.sources.items():
            other = seen.setdefault(source.claim, name) if source.claim else name
            if other != name:
                raise PydanticCustomError(
                    "same_stream",
                    "sources {one} and {other} share {what} of one database: give each a {kind} of its own",
                    {"one": other, "other": name, "what": source.claim[-1], "kind": source.claim[-1].partition(" ")[0]},
                )

    def _check_control(self) -> None:
        if self.control.dsn is None and next(iter(self.sources.values())).database is None:
            raise PydanticCustomError(
                "no_control", "control.dsn is required, because the first source is no PostgreSQL database"
            )

    def _check_both_ways(self) -> None:
        """Where a source's changes come back to (docs/both-ways.md), what is needed lest they go round and round."""
        for name, source in self.sources.items():
            if source.comes_back_to is not None:
                for flaw in self._flaws_both_ways(name, source):
                    raise PydanticCustomError("both_ways", "sources.{name}: {flaw}", {"name": name, "flaw": flaw})
                takers = [target.store for n, target in self.targets.items() if name in self.followed_by(n)]
                self._twins.setdefault(source.comes_back_to, []).extend((name, t.wrote) for t in takers)  # type: ignore[attr-defined]

            else:
                self._check_circle(name, source)

    def _check_circle(self, name: str, source: SourceSettings) -> None:
        """A source that reads what a target writes takes it for changes of its own."""
        table, address = source.edits
        for target, found in self.targets.items():
            serves = getattr(found.store, "serves", None)
            mapped = source.is_written_by((found.tables or {}).get(table))
            if mapped and serves is not None and serves(address):
                raise PydanticCustomError(
                    "circle",
                    "sources.{name} reads the keys that targets.{target} writes, and each would take the other's "
                    "changes for new ones: set sources.{name}.both_ways to {target}, or give it other keys",
                    {"name": name, "target": target},
                )

    def _flaws_both_ways(self, name: str, source: SourceSettings) -> Iterator[str]:
        twin = source.comes_back_to or ""
        back = self.targets.get(twin)
        if back is None or back.type != source.type:
            yield f"both_ways must name a target of type {source.type}, which {twin} is not"
            return
        place = getattr(back.store, "edited_at", lambda table, url: None)(*source.edits)
        if place is None:
            yield f"targets.{twin} must be of the same server, with both_ways: true and adopt: false"
        if not source.is_written_by((back.tables or {}).get(source.edits[0])):
            yield f"targets.{twin}.tables must map {source.edits[0]} to the same hash, with its columns and no others"
        for other in self.followed_by(twin):
            if other == name or not self.sources[other].tells_origins:
                yield f"targets.{twin} must follow only sources that capture PostgreSQL's WAL, and {other} is none"
        for target in self.targets:
            if name in self.followed_by(target) and not getattr(self.targets[target].store, "marks_surely", False):
                yield f"targets.{target} must be of type postgres with origin: true, or its changes come back as new"
            rule = (self.targets[target].tables or {}).get(source.edits[0])
            if name in self.followed_by(target) and rule is not None and rule.model_fields_set:
                yield f"targets.{target}.tables must take {source.edits[0]} as it is: bases of edits are not mapped"
        for other in self.followed_by(twin):
            self.sources[other].expect_writes(source.edits[0])
            yield from self._flaws_of_takers(other, source.edits[0])
        if place is not None:
            source.meets(*place)

    def _flaws_of_takers(self, source: str, table: str) -> Iterator[str]:
        """The table has a column of Syncline's own, which is nobody else's."""
        for name, target in self.targets.items():
            rule = (target.tables or {}).get(table)
            if source in self.followed_by(name) and (target.tables is None or (rule and not rule.columns)):
                yield f"targets.{name}.tables must name the columns of {table}: it has one of Syncline's own too"

    def began_at(self, target: str, origin: str) -> bool:
        """Whether changes of this origin (:class:`~syncline.change.Entry`) were captured where a target writes."""
        return any(wrote(origin, source) for source, wrote in self._twins.get(target, ()))

    def _check_claims(self) -> None:
        """A store's configuration class may offer ``claims() -> dict[str, Path]``: by setting, folders of its own."""
        seen: dict[Path, str] = {}
        for name, target in self.targets.items():
            claims = getattr(target.store, "claims", dict)
            for setting, folder in claims().items():
                place = f"targets.{name}.{setting}"
                other = seen.setdefault(Path(os.path.realpath(folder.expanduser())), place)
                if other != place:
                    raise PydanticCustomError(
                        "same_folder",
                        "{one} and {other} are one folder ({folder}): give each target a folder of its own",
                        {"one": other, "other": place, "folder": str(folder)},
                    )

    def _check_places(self) -> None:
        """A store's configuration class may offer ``copy_place() -> str``: where its copies stand. One cursor tells
        what a source left at a place, so two targets there would each take the other's tables for their own."""
        seen: dict[tuple[str, str, str], str] = {}
        for name, target in self.targets.items():
            place = getattr(target.store, "copy_place", str)()
            for source in self.followed_by(name) if place else ():
                other = seen.setdefault((target.type, place, source), name)
                if other != name:
                    raise PydanticCustomError(
                        "same_place",
                        "targets.{one} and targets.{other} are one place ({place}) and follow one source: make them "
                        "one target with all their tables, or give each a place of its own",
                        {"one": other, "other": name, "place": place},
                    )

    def _check_rules(self) -> None:
        """Each rule is about a source or a target that there is."""
        sources = [f"source.{name}" for name in self.sources]
        known = [*(["source"] if len(self.sources) == 1 else []), *sources, *self.targets]
        for name, rule in self.verify.rules.items():
            if rule.on not in known:
                raise PydanticCustomError(
                    "no_place",
                    "verify.rules.{rule}.on is {on}, which is neither a source nor a target ({known})",
                    {"rule": name, "on": rule.on, "known": ", ".join(known)},
                )


def settings_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model under the names that users write, ``type`` and those without a default first."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    return dict(sorted(fields.items(), key=lambda one: one[0] != "type" and not one[1].is_required()))
