"""How the control schema came to be, as Alembic revisions; :mod:`syncline.catalog.upgrade` runs them."""
