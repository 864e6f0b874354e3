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
# The module of a demo whose changes come from another source.
_FROM = {("chunks", "stream"): "published"}


def scenario(name: str, source: str | None = None) -> Scenario:
    """The demo of this name; with ``source`` the one whose changes come from there.

    Raises:
        Misconfigured: there is none.
    """
    if name not in DEMOS:
        raise Misconfigured(f"There is no demo {name}.", remedy=hint(name, DEMOS))
    if source is not None and (name, source) not in _FROM:
        known = ", ".join(f"`syncline demo {one} --source {way}`" for one, way in _FROM)
        raise Misconfigured(f"There is no demo {name} from source {source}.", remedy=f"There is {known}.")
    module = name if source is None else _FROM[name, source]
    found: Scenario = import_module(f"syncline.demo.{module}").SCENARIO
    return found
