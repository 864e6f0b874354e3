"""The texts by which the Neo4j store knows keys: one for each key of each table or label, whatever these are called."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from syncline.stores.neo4j.values import Values, key_texts, text_prefix

_NAMES = st.text(st.sampled_from("ab \\|."), min_size=1, max_size=4)
_KEYS = st.tuples(_NAMES, _NAMES)


def text_of(name: str, key: tuple[str, ...]) -> str:
    (text,) = key_texts(name, [Values(pa.array([part])) for part in key]).to_pylist()
    return str(text)


@given(_NAMES, _KEYS, _NAMES, _KEYS)
def test_no_two_keys_share_a_text_and_no_name_begins_with_another(
    name: str, key: tuple[str, str], other: str, its: tuple[str, str]
) -> None:
    assert (text_of(name, key) == text_of(other, its)) == ((name, key) == (other, its))
    assert text_of(name, key).startswith(text_prefix(other)) == (name == other)


def test_the_table_that_is_named_like_the_beginning_of_another() -> None:
    assert text_of("public.j", ("x y",)) != text_of("public.j x", ("y",))
    assert text_of("A", ("B C",)) != text_of("A B", ("C",))
    assert not text_of("public.j x", ("y",)).startswith(text_prefix("public.j"))
