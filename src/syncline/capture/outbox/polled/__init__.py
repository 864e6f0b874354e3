"""The outbox where there is no slot: its table is polled by the commit horizon (:mod:`syncline.capture.horizon`).

``stream`` says which events come when, ``reading`` has the queries, ``source`` is all of it as the engine sees it, and
``check`` finds what stands in the way.
"""
