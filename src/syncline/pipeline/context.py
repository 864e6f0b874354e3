"""What all parts of one source's pipeline work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from syncline.capture import Source
from syncline.capture.settings import SourceSettings
from syncline.catalog.repository import ControlSchema
from syncline.config import Config
from syncline.pipeline.reports import Reports

__all__ = ["Context"]


@dataclass(frozen=True, slots=True)
class Context:
    """One source and its name, the whole configuration, where to report, and who listens.

    ``talk`` hears what a person wants to know, from any thread.
    """

    name: str
    source: Source
    config: Config
    control: ControlSchema
    reports: Reports
    talk: Callable[[str], None]

    @property
    def settings(self) -> SourceSettings:
        """Those of the source."""
        return self.source.settings

    @property
    def resyncs(self) -> bool:
        """Whether a gap is mended without asking a person."""
        return self.settings.on_gap == "resync"
