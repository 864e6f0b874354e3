"""What captures share that read a table of events by the commit horizon, without a replication slot: triggers, and an
outbox that is polled.

``stream`` polls, ``pages`` are the events of whole transactions, ``source`` is identity, gaps and points, ``lock``
keeps it to one reader, and ``check`` finds what stands in the way.
"""
