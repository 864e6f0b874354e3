"""Syncline keeps databases provably in step with PostgreSQL: capture, log, apply, verify."""

__all__ = ["__version__"]

__version__ = "0.1.0"
