"""How a table is mapped, as users write it below ``targets.<name>.tables``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic import model_validator as validates
from pydantic_core import PydanticCustomError

from syncline.errors import Misconfigured
from syncline.patterns import parse_pattern

__all__ = [
    "FORMS",
    "ColumnRule",
    "EndRule",
    "GraphMapping",
    "KeysMapping",
    "MembersRule",
    "PointsMapping",
    "ReferenceRule",
    "RowsMapping",
    "TableMapping",
    "ValueRule",
    "VectorRule",
]


def _one_table(text: str) -> str:
    """A table's name with its schema, ``public`` if it is given none."""
    try:
        pattern = parse_pattern(text)
    except Misconfigured as error:
        raise PydanticCustomError("no_table", "{said}", {"said": str(error)}) from error
    if pattern.schema is None or pattern.table is None:
        raise PydanticCustomError("wildcard", "must be the name of one table, without * and ?")
    return f"{pattern.schema}.{pattern.table}"


TableName = Annotated[str, AfterValidator(_one_table)]
_FROZEN = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)
Form = Literal["text", "texts", "json", "vector", "sparse"]


class ColumnRule(BaseModel):
    """A column at the target: its name there, and another form of its values."""

    model_config = _FROZEN

    name: str | None = Field(None, min_length=1, description="Name at the target; null keeps it.")
    form: Form | None = Field(
        None,
        alias="as",
        description="text, texts (a list, from an array of text), json, vector (from an array or pgvector), sparse.",
    )


def _rule(value: object) -> object:
    """``title: heading`` is short for ``title: {name: heading}``, ``title:`` keeps the name."""
    return {} if value is None else {"name": value} if isinstance(value, str) else value


def _named(value: object) -> object:
    """``[id, title]`` is short for ``{id: , title: }``."""
    return dict.fromkeys(value) if isinstance(value, list | tuple) else value


def _of_64_bits(value: str | float) -> str | float:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise PydanticCustomError("bits", "a whole number of more than 64 bits is no column's value: give it as text")
    return value


class TableMapping(BaseModel):
    """What every kind of target lets one say about a table."""

    model_config = _FROZEN

    columns: Annotated[dict[str, Annotated[ColumnRule, BeforeValidator(_rule)]], BeforeValidator(_named)] | None = (
        Field(None, description="Columns to take, with their names at the target; null takes all. Keys always are.")
    )
    exclude: tuple[str, ...] = Field((), description="Columns to leave out.")
    constants: dict[str, Annotated[str | int | float | bool, AfterValidator(_of_64_bits)]] = Field(
        default_factory=dict, description="Columns that hold one value in every row."
    )
    where: str | None = Field(
        None,
        pattern=r"\S",
        description="SQL condition; a row that it is not true of is not at the target (DuckDB's SQL).",
    )
    transform: str | None = Field(
        None,
        pattern=r"\S",
        description="`select ... from batch` (DuckDB's SQL), or module:function on a pyarrow.Table. Keys stay.",
    )


class RowsMapping(TableMapping):
    """Rows stay rows."""

    table: str | None = Field(None, min_length=1, description="Name at the target, `schema.table`; null keeps it.")
    soft_delete: str | None = Field(
        None, min_length=1, description="Column (timestamptz) that a deletion sets instead of removing the row."
    )


class ReferenceRule(BaseModel):
    """A relationship by a foreign key."""

    model_config = _FROZEN

    to: TableName | None = Field(None, description="Table that is referred to; null: as the foreign key says.")
    type: str | None = Field(None, min_length=1, description="Type of the relationship; null: from the column's name.")
    incoming: bool = Field(False, description="It leads from there to here.")


def _reference_rule(value: object) -> object:
    """``author_id: WRITTEN_BY`` is short for ``author_id: {type: WRITTEN_BY}``."""
    return {"type": value} if isinstance(value, str) else value


class EndRule(BaseModel):
    """One end of a relationship."""

    model_config = _FROZEN

    table: TableName = Field(description="Table whose row is the node.")
    columns: tuple[str, ...] | None = Field(
        None, description="Columns here that hold its key; null: as the foreign key says."
    )


class GraphMapping(TableMapping):
    """A row becomes a node, or, of a join table, a relationship."""

    node: str | None = Field(None, min_length=1, description="Label of the node; null: from the table's name.")
    labels: tuple[str, ...] = Field((), description="More labels.")
    label_column: str | None = Field(None, description="Column that names one more label, among allowed_labels.")
    allowed_labels: tuple[str, ...] = Field((), description="The labels that label_column may name.")
    references: dict[str, Annotated[ReferenceRule, BeforeValidator(_reference_rule)]] = Field(
        default_factory=dict, description="Relationships by column (or `a, b` for several), over those found."
    )
    foreign_keys: bool = Field(True, description="Make a relationship of every foreign key to a table of this target.")
    relationship: str | None = Field(None, min_length=1, description="Type of the relationship that a row becomes.")
    type_column: str | None = Field(None, description="Column that names the type, among allowed_types.")
    allowed_types: tuple[str, ...] = Field((), description="The types that type_column may name.")
    start: EndRule | None = Field(None, alias="from", description="Where the relationship begins.")
    end: EndRule | None = Field(None, alias="to", description="Where it ends.")

    @validates(mode="after")
    def _is_one_thing(self) -> GraphMapping:
        edge = bool(self.relationship or self.type_column)
        if edge and (self.node or self.labels or self.label_column):
            raise PydanticCustomError("two_forms", "a row is a node or a relationship, not both: drop node and labels")
        if edge and (self.start is None or self.end is None):
            raise PydanticCustomError("no_ends", "a relationship needs `from:` and `to:`, each with its `table:`")
        if not edge and (self.start or self.end):
            raise PydanticCustomError("no_type", "`from:` and `to:` belong to a relationship: name its type")
        for column, allowed in ((self.label_column, self.allowed_labels), (self.type_column, self.allowed_types)):
            if bool(column) != bool(allowed):
                raise PydanticCustomError("no_list", "label_column needs allowed_labels, and type_column allowed_types")
        return self


class VectorRule(BaseModel):
    """A named vector: from a column, or made of text by an embedder."""

    model_config = _FROZEN

    column: str | None = Field(None, description="Column that holds it: an array of numbers, or a pgvector.")
    embed: str | None = Field(None, description="module:function from a list of texts to a list of vectors.")
    text: tuple[str, ...] = Field((), description="Columns whose text is embedded, joined by line ends.")
    model: str = Field("", description="Name of the embedder's model; another name has everything embedded anew.")
    batch: int = Field(256, ge=1, description="Most texts in one call of the embedder.")
    size: int = Field(0, ge=0, le=65536, description="Number of dimensions (0 for sparse vectors).")
    distance: Literal["cosine", "dot", "euclid", "manhattan"] = Field("cosine", description="How they are compared.")
    sparse: bool = Field(False, description="It is sparse: indices and values.")

    @validates(mode="after")
    def _has_one_origin(self) -> VectorRule:
        if (self.column is None) == (self.embed is None):
            raise PydanticCustomError("no_vector", "a vector is from a `column:` or made by `embed:`, one of them")
        if bool(self.embed) != bool(self.text):
            raise PydanticCustomError("no_text", "`embed:` and `text:` (the columns to embed) go together")
        if self.sparse == bool(self.size):
            raise PydanticCustomError("no_size", "a dense vector needs its `size:`, a sparse one has none")
        return self


class PointsMapping(TableMapping):
    """A row becomes a point."""

    collection: str | None = Field(None, min_length=1, description="Collection; null: from the table's name.")
    vectors: dict[str, VectorRule] = Field(default_factory=dict, description="Vectors by name.")
    indexes: dict[str, Literal["keyword", "integer", "float", "bool", "datetime", "uuid", "text"]] = Field(
        default_factory=dict, description="Payload columns with an index, and its kind."
    )


class ValueRule(BaseModel):
    """A key with all of a row, or some columns of it."""

    model_config = _FROZEN

    key: str = Field(min_length=1, description="Template such as user:{id}; columns of the table's key only.")
    columns: tuple[str, ...] = Field((), description="Columns to hold; empty: all.")
    ttl_s: int = Field(0, ge=0, description="Seconds after which it expires; 0: never.")


class MembersRule(BaseModel):
    """A member of a sorted set."""

    model_config = _FROZEN

    key: str = Field(min_length=1, description="Template of the set's key; any column.")
    member: str = Field("{id}", min_length=1, description="Template of the member; columns of the table's key only.")
    score: str = Field(description="Column that holds the score.")


def _value_rule(value: object) -> object:
    return {"key": value} if isinstance(value, str) else value


class KeysMapping(TableMapping):
    """A row becomes a hash, a JSON string, members of sorted sets, or several of them."""

    hash: Annotated[ValueRule | None, BeforeValidator(_value_rule)] = Field(None, description="A hash a row.")
    json_: Annotated[ValueRule | None, BeforeValidator(_value_rule)] = Field(
        None, alias="json", description="A string a row that holds it as JSON."
    )
    members: tuple[MembersRule, ...] = Field((), description="Sorted sets that the row is a member of.")


# What a store declares as its form -> what may be said about a table there.
FORMS: dict[str, type[TableMapping]] = {
    "rows": RowsMapping,
    "graph": GraphMapping,
    "points": PointsMapping,
    "keys": KeysMapping,
}
