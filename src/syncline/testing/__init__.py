"""Conformance suites for the three contracts, and the examples they are written with.

Shipped, so that a log, a capture or a store of your own can be held against the same rules: subclass the suite
(``syncline.testing.log_suite.LogConformance`` and its siblings) in a pytest module and give it the fixtures it names.
The suites import pytest; the examples need nothing beyond Syncline.
"""

from syncline.testing.examples import example_batch, example_entry, example_schema

__all__ = ["example_batch", "example_entry", "example_schema"]
