"""The entry points of systems that Syncline takes the place of, under the names that their users know: one module each,
without logic of its own. What is called otherwise here, and why, is in docs/names.md.
"""
