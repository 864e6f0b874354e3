"""The names of a system with an outbox lead to what does its work."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from servers import Database, eventually
from syncline.capture.outbox.install import install
from syncline.capture.outbox.settings import OutboxConfig
from syncline.systems.sync_engine import EventType, SyncEvent, get_sync_publisher

CONFIG = """
source:
  dsn: {dsn}
  slot: {name}
  monitored_tables: [public.concept]
  outbox: {{entities: {{concept: {{table: public.concept}}}}}}
target: {{type: duckdb, path: copy.duckdb}}
log: {{disk_reserve_bytes: 0}}
"""


@pytest.mark.parametrize(
    ("prelude", "ending"),
    [("", signal.SIGINT), ("", signal.SIGTERM), ("signal.signal(signal.SIGINT, signal.SIG_IGN); ", signal.SIGINT)],
    ids=["SIGINT", "SIGTERM", "in the background"],
)
def test_the_consumer_applies_what_the_publisher_publishes_until_it_is_interrupted(
    database: Database, tmp_path: Path, prelude: str, ending: signal.Signals
) -> None:
    database.execute("create table concept (id text primary key, title text)")
    with database.connect() as connection:
        install(connection, OutboxConfig.model_validate({"entities": {"concept": {"table": "public.concept"}}}))
    (tmp_path / "syncline.yaml").write_text(CONFIG.format(dsn=database.dsn, name=f"slot_{database.name}"))
    code = "from syncline.systems.sync_engine import run_consumer as run; run(batch_size=10, poll_interval=5)"
    code = f"import signal; {prelude}{code}"
    consumer = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        publisher = get_sync_publisher()
        with database.connect(autocommit=False) as session:
            session.execute("insert into concept values ('concept-1', 'One')")
            publisher.publish_content_created("concept-1", "concept", {"title": "One"}, session=session)
            publisher.publish(SyncEvent(EventType.CONTENT_DELETED, "concept-0", "concept"), session=session)
        states = "select array_agg(status) from syncline_outbox.sync_event_status"
        eventually(lambda: database.value(states) == ["COMPLETED", "COMPLETED"], 60)
        consumer.send_signal(ending)
        assert (consumer.wait(30), consumer.stderr.read() if consumer.stderr else "") == (0, "")
    finally:
        consumer.kill()
        consumer.communicate()
    with duckdb.connect(str(tmp_path / "copy.duckdb"), read_only=True) as copy:
        assert copy.execute("select id, title from concept").fetchall() == [("concept-1", "One")]
