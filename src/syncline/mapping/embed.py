"""Vectors made of text by a user's function, only where the text changed.

Beside each such vector stands a digest of the model and the text that it was made of, so that a row whose digest is at
the target already needs no new vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Column, arrow_type
from syncline.errors import Rejected
from syncline.mapping.settings import VectorRule
from syncline.mapping.transform import load_callable

__all__ = ["Embedder", "digest_column"]


def digest_column(vector: str) -> str:
    """The column beside an embedded vector that tells what it was made of."""
    return f"_embedded_{vector}"


class Embedder:
    """One vector of a table. ``columns`` are what it adds to the target's: the vector and its digest.

    ``positions`` are those of the text's columns before the mapping picks columns, ``mapped`` those at the target: the
    text is part of the payload, so that whoever reads the point sees what its vector was made of.

    Raises:
        Misconfigured: the function can't be loaded.
    """

    def __init__(self, name: str, rule: VectorRule, positions: Sequence[int], mapped: Sequence[int]) -> None:
        self.name = name
        self.reference = rule.embed or ""
        self.model = rule.model
        self.texts = rule.text
        self.positions = tuple(positions)
        self.mapped = tuple(mapped)
        kind = "sparse" if rule.sparse else "vector"
        self.columns = (Column(name, kind, "embedding"), Column(digest_column(name), "text", "embedding"))
        self._size = rule.size
        self._kind = kind
        self._function = load_callable(self.reference)

    def placeholders(self, columns: Sequence[pa.Array]) -> list[pa.Array]:
        """No vector yet, and the digest of each row's text; from the target's columns."""
        digests = [
            None if text is None else hashlib.sha256(f"{self.model}\0{text}".encode()).hexdigest()[:32]
            for text in self.text_of(columns).to_pylist()
        ]
        return [pa.nulls(len(digests), arrow_type(self._kind)), pa.array(digests, pa.string())]

    def text_of(self, columns: Sequence[pa.Array]) -> pa.Array:
        """The text to embed, NULL where all of its columns are; from the target's columns."""
        parts = [columns[i].cast(pa.string()) for i in self.mapped]
        nothing = pa.array(np.all([p.is_null().to_numpy(zero_copy_only=False) for p in parts], axis=0))
        # Arrow (26.0) drops rows without any value when it is told to skip NULLs, so there has to be one.
        parts[0] = pc.if_else(nothing, pa.scalar(""), parts[0])
        joined = pc.binary_join_element_wise(*parts, pa.scalar("\n"), null_handling="skip")
        return pc.if_else(nothing, pa.scalar(None, pa.string()), joined)

    def embed(self, table: str, texts: list[str]) -> pa.Array:
        """A vector for each text, in one call of the user's function.

        Raises:
            Rejected: the function failed, or gave vectors of another number or size; positions among the texts.
        """
        try:
            found = self._function(texts)
            vectors = pa.array([_plain(v) for v in found], arrow_type(self._kind))
        except Exception as error:
            raise Rejected(
                table, range(len(texts)), f"the embedder of {self.name} failed ({type(error).__name__})"
            ) from error
        if len(vectors) != len(texts):
            raise Rejected(
                table,
                range(len(texts)),
                f"the embedder of {self.name} gave {len(vectors)} vectors for {len(texts)} texts",
            )
        if self._size:
            wrong = pc.not_equal(pc.list_value_length(vectors), self._size)
            bad = np.flatnonzero(pc.fill_null(wrong, True).to_numpy(zero_copy_only=False))
            if len(bad):
                raise Rejected(table, bad.tolist(), f"vector {self.name} does not have {self._size} dimensions")
        return vectors


def _plain(vector: Any) -> Any:
    return vector.tolist() if hasattr(vector, "tolist") else vector
