"""The FastAPI example as its users start it, against a real PostgreSQL: rows arrive while the application runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import httpx

from servers import Database, eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "fastapi_lifespan"


@contextmanager
def application(configuration: Path) -> Iterator[str]:
    """The running application's URL. It is asked to end behind the block, and has to do so cleanly."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(EXAMPLE), "--port", str(port)]
    process = subprocess.Popen(
        command, env={**os.environ, "SYNCLINE_CONFIG": str(configuration)}, stderr=subprocess.PIPE, text=True
    )
    try:
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGTERM), said
        assert "Application shutdown complete" in said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.communicate()


def test_a_database_that_is_away_is_one_message(tmp_path: Path) -> None:
    file = tmp_path / "syncline.yaml"
    file.write_text(
        "source:\n  dsn: postgresql://reader:hush@127.0.0.1:1/shop\ntarget:\n  type: duckdb\n  path: copy.duckdb\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(EXAMPLE), "--port", "0"],
        env={**os.environ, "SYNCLINE_CONFIG": str(file)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("127.0.0.1:1/shop cannot be reached") == 1


def applied(url: str) -> int | None:
    """Rows that the copy has taken, None while the application is not streaming yet."""
    try:
        found: dict[str, Any] = httpx.get(f"{url}/status").raise_for_status().json()
    except httpx.TransportError:
        return None
    source = found["sources"]["main"]
    return source["targets"]["main"].get("rows_applied") if source["state"] == "streaming" else None


def test_rows_arrive_while_the_application_runs_and_it_ends_cleanly(database: Database, tmp_path: Path) -> None:
    database.execute("create table items (id int primary key, name text); insert into items values (1, 'before')")
    file, copy = tmp_path / "syncline.yaml", tmp_path / "copy.duckdb"
    file.write_text(
        f"source:\n  dsn: {database.dsn}\ntarget:\n  type: duckdb\n  path: {copy}\nlog:\n  path: {tmp_path / 'log'}\n"
    )
    with application(file) as url:
        eventually(lambda: applied(url) == 1, 60)
        database.execute("insert into items values (2, 'while it runs')")
        eventually(lambda: applied(url) == 2, 60)
    with duckdb.connect(str(copy), read_only=True) as connection:
        rows = connection.execute("select id, name from items order by id").fetchall()
    assert rows == [(1, "before"), (2, "while it runs")]
    let_go = "select active_pid is null from pg_replication_slots where slot_name = 'syncline'"
    eventually(lambda: database.value(let_go))
