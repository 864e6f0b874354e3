"""One Neo4j database: its settings, connections, transactions, and the translation of the driver's errors."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import neo4j
from neo4j import exceptions
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError

from syncline.errors import Misconfigured, SynclineError, Unavailable
from syncline.stores.neo4j.cypher import quote

__all__ = ["Constraint", "Database", "Neo4jConfig", "Refused", "Transaction", "translate"]

# Uniqueness constraints on relationships came with it.
_OLDEST = (5, 7)
_ONLINE_S = 600.0


class Neo4jConfig(BaseModel):
    """One Neo4j database."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    # Variables under which documents of other systems know these settings; the configuration reads them.
    environment_names: ClassVar[dict[str, str]] = {
        "NEO4J_URI": "uri",
        "NEO4J_USER": "user",
        "NEO4J_PASSWORD": "password",
        "NEO4J_DATABASE": "database",
    }

    uri: str = Field(
        pattern=r"^(bolt|neo4j)(\+s|\+ssc)?://[^\s@]+$",
        description="Server, as bolt:// or neo4j:// (+s: encrypted).",
        examples=["${NEO4J_URI}"],
    )
    user: str = Field("neo4j", description="User name.")
    password: SecretStr | None = Field(None, description="Password; null where the server asks for none.")
    database: str | None = Field(None, description="Database; null is the user's home database.")
    connect_timeout_s: float = Field(10.0, gt=0, description="How long one attempt to connect may take.")
    transaction_timeout_s: float = Field(
        300.0,
        gt=0,
        description="How long the server may work on one transaction that writes, waiting for locks included.",
    )

    def copy_place(self) -> str:
        return f"{self.uri.partition('://')[2].rstrip('/')}/{self.database or ''}"

    @field_validator("uri", mode="before")
    @classmethod
    def _holds_no_login(cls, uri: object) -> object:
        """It is shown in messages (Guarantee 11)."""
        if "@" in str(uri):
            raise PydanticCustomError("login", "must hold no login: user and password have settings of their own")
        return uri


class Refused(Misconfigured):
    """The server refused a statement for what its rows hold; the driver's error is the cause."""


@dataclass(frozen=True)
class Constraint:
    """A uniqueness constraint on nodes with a label, or on relationships of a type; or an index that is none."""

    kind: str
    properties: tuple[str, ...]
    relationship: bool = False
    unique: bool = True

    @property
    def create(self) -> str:
        """The statement that makes it."""
        target = f"()-[x:{quote(self.kind)}]-()" if self.relationship else f"(x:{quote(self.kind)})"
        keys = ", ".join(f"x.{quote(p)}" for p in self.properties)
        if self.unique:
            return f"CREATE CONSTRAINT IF NOT EXISTS FOR {target} REQUIRE ({keys}) IS UNIQUE"
        return f"CREATE INDEX IF NOT EXISTS FOR {target} ON ({keys})"

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(self.properties)})"


class Transaction:
    """A transaction of the driver with the two ways in which statements are used here. ``compatible``: the server only
    speaks as Neo4j does."""

    def __init__(self, transaction: neo4j.Transaction, compatible: bool) -> None:
        self._transaction = transaction
        self.compatible = compatible

    def read(self, statement: str, parameters: Mapping[str, Any] | None = None, **more: Any) -> list[list[Any]]:
        """The rows of a query."""
        result = self._transaction.run(statement, {**(parameters or {}), **more})
        return [record.values() for record in result]

    def stream(self, statement: str, parameters: Mapping[str, Any], rows: int) -> Iterator[list[list[Any]]]:
        """The rows of a query, so many at a time."""
        result = self._transaction.run(statement, dict(parameters))
        while batch := result.fetch(rows):
            yield [record.values() for record in batch]

    def write(self, statement: str, parameters: Mapping[str, Any] | None = None, **more: Any) -> neo4j.SummaryCounters:
        """Run to its end; what it changed."""
        result = self._transaction.run(statement, {**(parameters or {}), **more})
        return result.consume().counters


class Database:
    """A driver for one database. Sessions are taken per transaction, so threads may share it.

    Raises (everywhere): Unavailable, Misconfigured, as :func:`translate` decides; Refused.
    """

    def __init__(self, config: Neo4jConfig) -> None:
        self.config = config
        password = config.password
        try:
            self._driver = neo4j.GraphDatabase.driver(
                config.uri,
                auth=(config.user, password.get_secret_value()) if password else None,
                connection_timeout=config.connect_timeout_s,
                connection_acquisition_timeout=config.connect_timeout_s * 2,
                max_transaction_retry_time=0.0,  # the engine retries
                keep_alive=True,
                user_agent="syncline",
                notifications_min_severity="OFF",
                telemetry_disabled=True,
            )
        except (exceptions.ConfigurationError, ValueError) as error:
            raise Misconfigured(
                f"The Neo4j address {config.uri} cannot be used.", remedy="Correct the target's uri."
            ) from error
        self.server = ""

    def greet(self) -> None:
        """Connect once, and look at who answers.

        Raises:
            Misconfigured: the server is older than what is needed.
        """
        with self.translated():
            # The driver checks the database's name with the first statement only.
            with self._session() as session:
                session.run("RETURN 1").consume()
            self.server = self._driver.get_server_info().agent
        version = re.match(r"Neo4j/(\d+)\.(\d+)", self.server)
        if version is not None and (int(version[1]), int(version[2])) < _OLDEST:
            raise Misconfigured(
                f"The server at {self.config.uri} is {self.server}; Neo4j 5.7 or newer is needed.",
                remedy="Upgrade Neo4j.",
            )

    @property
    def compatible(self) -> bool:
        """Whether it only speaks as Neo4j does."""
        return "compatible" in self.server

    def _session(self) -> neo4j.Session:
        return self._driver.session(database=self.config.database)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """The driver's errors raised as ours."""
        try:
            yield
        except exceptions.ClientError as error:
            if _is_about_values(error):
                raise Refused(f"Neo4j refused a statement ({error.code}).") from error
            raise translate(error, self.config) from error
        except (exceptions.Neo4jError, exceptions.DriverError, OSError) as error:
            raise translate(error, self.config) from error

    @contextmanager
    def transaction(self, *, keep: bool = True) -> Iterator[Transaction]:
        """One explicit transaction: committed and durable behind the block, rolled back if it raises or if nothing is
        to be kept."""
        with self._begun(self.config.transaction_timeout_s) as inner:
            yield Transaction(inner, self.compatible)
            if keep:
                self._commit(inner)
            else:
                inner.rollback()

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """One transaction for a whole table, of which nothing is kept: how long it takes says how large the table is,
        not that something hangs. Only the server's own limit (``db.transaction.timeout``, by default none) ends it."""
        with self._begun(0) as inner:
            yield Transaction(inner, self.compatible)
            inner.rollback()

    @contextmanager
    def asking(self, timeout_s: float) -> Iterator[Transaction]:
        """A transaction for what people ask: the server lets it read only, ends it after ``timeout_s``, and nothing of
        it is kept, whatever a server that only speaks as Neo4j does makes of that."""
        database = self.config.database
        with self.translated(), self._driver.session(database=database, default_access_mode=neo4j.READ_ACCESS) as asked:
            inner = asked.begin_transaction(timeout=timeout_s)
            try:
                yield Transaction(inner, self.compatible)
            finally:
                inner.close()  # rolls back

    @contextmanager
    def _begun(self, timeout_s: float) -> Iterator[neo4j.Transaction]:
        with self.translated(), self._session() as session, session.begin_transaction(timeout=timeout_s) as inner:
            yield inner

    def _commit(self, transaction: neo4j.Transaction) -> None:
        """Neo4j checks rows in the statements that write them. ArcadeDB says at the commit that a key is there twice:
        another writer was in between, or a constraint of the user's own is broken (docs/stores/neo4j.md)."""
        try:
            transaction.commit()
        except exceptions.ConstraintError as error:
            raise Unavailable(
                f"Another writer met us in Neo4j at {self.config.uri} ({error.code}).", remedy="It is tried again."
            ) from error

    def run(self, statement: str, **parameters: Any) -> list[list[Any]]:
        """One statement in a transaction of its own: what changes the schema can't stand beside data."""
        with self.translated(), self._session() as session:
            return [record.values() for record in session.run(statement, parameters)]

    # ------------------------------------------------------------------------------------------ constraints

    def constrain(self, *wanted: Constraint) -> None:
        """See to it that these constraints are there and online: without them concurrent writers make duplicates.

        Raises:
            Misconfigured: nodes that are there already stand in the way, or an index of somebody else's.
        """
        constraints = {(k, p) for k, p, what in self._shown("CONSTRAINTS", "type") if "UNIQUENESS" in what}
        indexes = {(k, p) for k, p, _ in self._shown("INDEXES", "type")}
        for constraint in dict.fromkeys(wanted):
            if (constraint.kind, constraint.properties) not in (constraints if constraint.unique else indexes):
                self._create(constraint)
        deadline = time.monotonic() + _ONLINE_S
        while late := self._not_online(wanted):
            if time.monotonic() > deadline:
                raise Unavailable(f"The constraint on {late[0]} is not online yet.", remedy="It is waited for.")
            time.sleep(0.05)

    def _not_online(self, wanted: Sequence[Constraint]) -> list[Constraint]:
        online = {
            (kind, properties) for kind, properties, state in self._shown("INDEXES", "state") if state == "ONLINE"
        }
        return [c for c in wanted if (c.kind, c.properties) not in online]

    def _create(self, constraint: Constraint) -> None:
        try:
            self.run(constraint.create)
        except Misconfigured as error:
            code = getattr(error.__cause__, "code", None) or type(error.__cause__).__name__
            raise Misconfigured(
                f"Neo4j refuses a uniqueness constraint on {constraint} ({code}).",
                remedy="Remove duplicates of this key, and drop a plain index on it: the constraint brings its own.",
            ) from error

    def release(self, constraint: Constraint) -> None:
        """Drop a constraint, whatever its name."""
        for name, kinds, properties in self.run(
            "SHOW CONSTRAINTS YIELD name, type, labelsOrTypes, properties WHERE type CONTAINS 'UNIQUENESS'"
            " RETURN name, labelsOrTypes, properties"
        ):
            if kinds == [constraint.kind] and tuple(properties) == constraint.properties:
                self.run(f"DROP CONSTRAINT {quote(name)} IF EXISTS")

    def _shown(self, what: str, more: str) -> list[tuple[str, tuple[str, ...], str]]:
        """Label or type, properties, and one thing more of each constraint or index."""
        rows = self.run(f"SHOW {what} YIELD labelsOrTypes, properties, {more} RETURN labelsOrTypes, properties, {more}")
        return [(kinds[0], tuple(properties), state) for kinds, properties, state in rows if kinds and properties]

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._driver.close()


# ------------------------------------------------------------------------------------------------ errors

_ABOUT_VALUES = (
    "Neo.ClientError.Schema.ConstraintValidationFailed",
    "Neo.ClientError.Statement.TypeError",
    "Neo.ClientError.Statement.ArgumentError",
)
# What passes, though the driver does not call it retryable.
_PASSING = (
    "Neo.TransientError.",
    "Neo.ClientError.Transaction.LockClientStopped",
    "Neo.ClientError.Cluster.NotALeader",
    "Neo.ClientError.Statement.EntityNotFound",  # another writer removed it in between
    "Neo.DatabaseError.Transaction.",
    "Neo.DatabaseError.Database.DatabaseNotFound",
)
_TOO_LONG = "Neo.ClientError.Transaction.TransactionTimedOut"
_AWAY = (
    exceptions.ServiceUnavailable,
    exceptions.SessionExpired,
    exceptions.ConnectionAcquisitionTimeoutError,
    OSError,
)
_SIGN_IN = (exceptions.AuthError, exceptions.Forbidden)


def _is_about_values(error: exceptions.ClientError) -> bool:
    return (error.code or "") in _ABOUT_VALUES and not error.is_retryable()


def _longer(code: str, config: Neo4jConfig) -> str:
    """Which limit it was: the server's own ends what only reads, and has the last word of the others."""
    if code.endswith("ClientConfiguration"):
        limit = f"the target's transaction_timeout_s ({config.transaction_timeout_s:g})"
    else:
        limit = "the server's db.transaction.timeout"
    return f"It is tried again. If it comes back, raise {limit}."


def translate(error: BaseException, config: Neo4jConfig) -> SynclineError:
    """The driver's error as one of ours. Its text may hold row values, so only its code is told (Guarantee 11)."""
    code = getattr(error, "code", None) or type(error).__name__
    where = f"Neo4j at {config.uri}"
    if isinstance(error, _SIGN_IN):
        return Misconfigured(
            f"{where} does not let user {config.user} do this ({code}).",
            remedy="Correct the target's user and password, or grant the rights to write and to create constraints.",
        )
    if "DatabaseNotFound" in code:
        return Misconfigured(
            f"{where} has no database {config.database}.", remedy="Create it, or correct the target's database."
        )
    if isinstance(error, _AWAY):
        return Unavailable(f"{where} is away ({code}).", remedy="It is tried again.")
    if code.startswith(_TOO_LONG):
        return Unavailable(f"{where} ended a transaction that took too long ({code}).", remedy=_longer(code, config))
    if isinstance(error, exceptions.DriverError):
        return Misconfigured(f"The driver cannot work with {where} ({code}).")
    if isinstance(error, exceptions.Neo4jError) and (error.is_retryable() or code.startswith(_PASSING)):
        return Unavailable(f"{where} could not do it now ({code}).", remedy="It is tried again.")
    return Misconfigured(
        f"{where} refused a statement ({code}).",
        remedy="Look for this code in the server's log; report it if in doubt.",
    )
