"""Capture by triggers, for databases whose WAL may not be decoded (``wal_level`` below ``logical``).

``script`` is the SQL that is installed: the table ``sync_events``, a function and four triggers for each table.
``installed`` looks at what is there and installs it, ``events`` reads it, ``stream`` polls by the commit horizon, and
``source`` is all of that as the engine sees it.
"""
