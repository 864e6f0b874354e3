"""Events that applications publish into a Redis stream, as a source.

``settings`` says which stream and which table, ``reading`` reads entries and sees when some are missing, ``events``
makes changes of them, ``told`` keeps what they said, ``stream`` is the capture, ``source`` all else that is asked.
"""
