"""PostgreSQL's values as Arrow columns, text and binary: what a source sends, and what a PostgreSQL target gives back.

Pure, and below both sides, so that a value read from a copy is decoded by the very code that decoded it at the source.
"""
