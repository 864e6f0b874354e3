"""Vectors made of text by a user's function, only where the text changed.

Beside each such vector stands a digest of the function, the model and the text that it was made of, so that a row whose
digest is at the target already needs no new vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syncline.change import Column, arrow_type
from syncline.errors import Rejected, SynclineError, Unavailable
from syncline.mapping.settings import VectorRule
from syncline.mapping.transform import load_callable
from syncline.masks import Bools

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
        self._batch = rule.batch
        self._kind = kind
        self._misfit = f"vector {name} does not have {rule.size} dimensions"
        self._function = load_callable(self.reference)
        self._worked: str | None = None  # a text that got a vector: the function is at fault where it gets none now

    def placeholders(self, columns: Sequence[pa.Array]) -> list[pa.Array]:
        """No vector yet, and the digest of each row's text; from the target's columns."""
        made_by = f"{self.reference}\0{self.model}"
        digests = [
            None if text is None else hashlib.sha256(f"{made_by}\0{text}".encode()).hexdigest()[:32]
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
        """A vector for each text, by calls of the user's function with at most ``batch`` of them. A call that fails is
        made again by halves, so that one text costs no other its vector.

        Raises:
            Rejected: the function fails on texts, or gives vectors of another number or size; positions among them.
            Unavailable: it raised that, or an error of the operating system (a connection, a file), or fails on all
                texts alike, so that no text is to blame: the same texts come again.
        """
        bad: dict[int, str] = {}
        made = [
            vectors
            for start in range(0, len(texts), self._batch)
            for vectors in self._made(table, texts[start : start + self._batch], start, bad)
        ]
        vectors = pa.chunked_array(made, arrow_type(self._kind)).combine_chunks()
        if not bad:
            bad = dict.fromkeys(np.flatnonzero(~self._fits(vectors)).tolist(), self._misfit)
        if bad:
            raise Rejected(table, sorted(bad), "; ".join(dict.fromkeys(bad.values())))
        return vectors

    def _made(self, table: str, texts: list[str], start: int, bad: dict[int, str]) -> list[pa.Array]:
        """The vectors of one batch; ``bad`` gets the positions of texts that have none, and why."""
        found = self._called(table, texts)
        if not isinstance(found, str):
            return [found]
        # Before and behind: it may break down or recover meanwhile, and a text is blamed only beside one that works.
        known, blamed = self._worked, dict[int, str]()
        self._expect(table, known, found)
        made = self._by_halves(table, texts, start, blamed, found)
        self._expect(table, known, found)
        if known is None and self._worked is not None:
            return self._made(table, texts, start, bad)
        if known is None and len(set(texts)) > 1 and len(set(blamed.values())) == 1:
            raise self._broken(table, next(iter(blamed.values())))  # no text ever got a vector
        bad |= blamed
        return made

    def _expect(self, table: str, known: str | None, why: str) -> None:
        """Raise ``Unavailable`` if a text that once got a vector gets none now."""
        if known is not None and isinstance(self._called(table, [known]), str):
            raise self._broken(table, why)

    def _by_halves(self, table: str, texts: list[str], start: int, bad: dict[int, str], why: str) -> list[pa.Array]:
        """The vectors of texts that a call has failed on together for this reason, in pieces."""
        if len(texts) == 1:
            bad[start] = why
            return [pa.nulls(1, arrow_type(self._kind))]
        half = len(texts) // 2
        made = []
        for part, at in ((texts[:half], start), (texts[half:], start + half)):
            found = self._called(table, part)
            made += self._by_halves(table, part, at, bad, found) if isinstance(found, str) else [found]
        return made

    def _broken(self, table: str, why: str) -> Unavailable:
        return Unavailable(
            f"The embedder of vector {self.name} of table {table} has a vector for no text: {why}.",
            remedy=f"It is asked again, and no row is parked. Mend {self.reference} (and start Syncline again), or what"
            " it needs.",
        )

    def _called(self, table: str, texts: list[str]) -> pa.Array | str:
        """The vectors of one call, or why there are none."""
        try:
            vectors = pa.array([_plain(v) for v in self._function(texts)], arrow_type(self._kind))
            if len(vectors) != len(texts):
                return f"the embedder of {self.name} gives {len(vectors)} vectors for {len(texts)} texts"
        except SynclineError:  # it knows what should happen next
            raise
        except Exception as error:
            if _is_away(error):
                raise Unavailable(
                    f"The embedder of vector {self.name} of table {table} is away ({type(error).__name__}).",
                    remedy=f"See whether what {self.reference} needs can be reached.",
                ) from error
            return f"the embedder of {self.name} fails ({type(error).__name__})"
        fits = self._fits(vectors)
        if not fits.any():
            return self._misfit
        self._worked = texts[int(fits.argmax())]
        return vectors

    def _fits(self, vectors: pa.Array) -> Bools:
        """Which of them have the dimensions that were promised."""
        if not self._size:
            return np.ones(len(vectors), np.bool_)
        right = pc.fill_null(pc.equal(pc.list_value_length(vectors), self._size), False)
        return np.asarray(right.to_numpy(zero_copy_only=False))


def _is_away(error: BaseException) -> bool:
    """Whether the operating system is to blame, for a connection or a file: clients of services raise errors of their
    own then, from or amid the system's."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, OSError):
            return True
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False


def _plain(vector: Any) -> Any:
    return vector.tolist() if hasattr(vector, "tolist") else vector
