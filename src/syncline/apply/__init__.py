"""Applying entries to a target: fold, complete, write, advance. No store is named here."""
