"""`syncline demo`: real servers, existing rows, a workload, live copies, and a comparison of all of it by content.

A module for each demo (:data:`DEMOS`), with its configuration and tables in ``files/``, which are the folders below
``examples/`` that users start from. ``run`` runs any of them, ``view`` shows it, ``copies`` asks the copies.
"""

from __future__ import annotations

from importlib import import_module

from syncline.config import hint
from syncline.demo.scenario import Scenario
from syncline.errors import Misconfigured

__all__ = ["DEMOS", "Scenario", "scenario"]

DEMOS = ("shop", "chunks", "academy", "analytics", "cmdb", "leaderboard")


def scenario(name: str) -> Scenario:
    """The demo of this name.

    Raises:
        Misconfigured: there is none.
    """
    if name not in DEMOS:
        raise Misconfigured(f"There is no demo {name}.", remedy=hint(name, DEMOS))
    found: Scenario = import_module(f"syncline.demo.{name}").SCENARIO
    return found
