"""Rows that are spread over keys of a Redis or Valkey server: read as columns, and compared with a table."""
