"""The outbox: what applications publish in their own transactions, captured through the slot as rows of the tables that
the events are about.

``install`` makes the table on the source, ``settings`` says which entity is which table, ``expand`` turns events into
batches (pure, also for a capture that reads the table in another way), ``stream`` does so between the WAL and the log,
and ``progress`` keeps what the status of events is told by.
"""
