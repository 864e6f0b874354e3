"""A FastAPI application that keeps its own DuckDB copy of PostgreSQL, for as long as it runs.

    SYNCLINE_CONFIG=syncline.yaml uvicorn app:app

One process may run the engine, so use one worker (``--workers 1``, the default).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request

from syncline import SynclineError, SyncService, load_config


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the engine between the application's start and its end. Its calls block, so they run in a thread."""
    try:
        service = SyncService(load_config())
        await asyncio.to_thread(service.start)
    except SynclineError as error:
        # An exception from here would be shown as a long traceback; the message says all that is to be done.
        print(f"Syncline can't start [{error.code}]: {error}", file=sys.stderr, flush=True)
        os._exit(3)
    app.state.syncline = service
    try:
        yield
    finally:
        await asyncio.to_thread(service.stop)


app = FastAPI(lifespan=lifespan)


@app.get("/status")
def status(request: Request) -> dict[str, Any]:
    """How far every source and target is."""
    found: dict[str, Any] = request.app.state.syncline.status()
    return found
