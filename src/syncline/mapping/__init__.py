"""Mapping: from a table's rows to what a target holds of them. Pure functions over columns, told by configuration.

``settings`` is what users write, ``columns`` picks, renames and converts, ``transform`` runs their SQL or Python,
``graph``, ``points``, ``keys`` and ``rows`` say what a row becomes (see :mod:`syncline.shape`); ``table`` puts it
together for one table, :class:`TargetMapping` for all tables of one target.
"""

from __future__ import annotations

from syncline.mapping.facts import Facts, ForeignKey
from syncline.mapping.settings import FORMS, GraphMapping, KeysMapping, PointsMapping, RowsMapping, TableMapping
from syncline.mapping.table import MappedTable
from syncline.mapping.target import TargetMapping

__all__ = [
    "FORMS",
    "Facts",
    "ForeignKey",
    "GraphMapping",
    "KeysMapping",
    "MappedTable",
    "PointsMapping",
    "RowsMapping",
    "TableMapping",
    "TargetMapping",
]
