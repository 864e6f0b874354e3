"""Bringing members of keys into a table, again and again: one run, and the service that starts runs."""
