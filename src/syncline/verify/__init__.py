"""Verification: is what a target holds what its source holds?

``compare`` runs it, ``point`` brings source and target to one place in time, ``pairing`` finds what differs.
"""

from __future__ import annotations

from syncline.verify.compare import verify
from syncline.verify.report import Report, TableReport

__all__ = ["Report", "TableReport", "verify"]
