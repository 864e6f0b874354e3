"""Verification: is what a target holds what its source holds?

``compare`` runs it, ``point`` brings source and target to one place in time, ``pairing`` finds what differs, ``checks``
looks at counts, rules and references, ``record`` at one record everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from syncline.config import Config, load_config
from syncline.patterns import qualified
from syncline.verify.compare import verify
from syncline.verify.point import Engine
from syncline.verify.report import Check, Report, TableReport

__all__ = ["Check", "Report", "TableReport", "run_consistency_check", "verify"]


def run_consistency_check(
    tables: Sequence[str] | None = None,
    check_types: Sequence[str] | None = None,
    *,
    config: Config | Path | None = None,
    engine: type[Engine] | None = None,
    talk: Callable[[str], None] | None = None,
) -> Report:
    """Check these tables (None: all; a name without a schema is of ``public``) of all targets by these types of checks:
    ``row_count``, ``data_hash``, ``business_rules``, ``referential_integrity`` (None: the comparison by content, and
    the rules of the configuration). The report has ``score`` (0 to 1) and ``consistency_score`` (in percent).

    ``config`` is a configuration, or its file (None: as the command line finds it). An engine has to run, or
    ``engine`` (:class:`syncline.SyncService`) is started for as long as it takes.

    Raises:
        Misconfigured: a table or a check is unknown, or the configuration can't be read.
        Unavailable: a server is away, no engine runs, or a target does not reach the point.
        Gap: a table is rewritten again and again while it is read.
    """
    told = config if isinstance(config, Config) else load_config(config)
    names = [qualified(name) for name in tables or ()]
    return verify(told, names, engine=engine, talk=talk, checks=check_types)
