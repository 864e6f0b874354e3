"""A pair that goes both ways is refused where its changes would go round and round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from syncline.config import load_config
from syncline.errors import Misconfigured

EXAMPLE = Path(__file__).parent.parent / "examples" / "both_ways" / "syncline.yaml"
ADDRESSES = {"DATABASE_URL": "postgresql://localhost/app", "REDIS_URL": "redis://localhost:6379/0"}
ORIGIN = "syncline:app:syncline_target:edits"


def load(folder: Path, settings: dict[str, Any]) -> Any:
    file = folder / "syncline.yaml"
    file.write_text(yaml.safe_dump(settings))
    return load_config(file, variables_from=ADDRESSES)


@pytest.fixture
def settings() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    return found


def test_only_the_target_where_a_change_began_passes_it_over(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings["targets"]["third"] = {**settings["targets"]["cache"], "prefix": "third"}
    config = load(tmp_path, settings)
    assert config.began_at("cache", ORIGIN)
    assert not config.began_at("third", ORIGIN)
    assert not config.began_at("cache", "somebody")
    assert not config.began_at("cache", "syncline:app:syncline_target:another")
    assert not config.began_at("cache", "")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("sources.edits.both_ways", None, "set sources.edits.both_ways to cache"),
        ("sources.edits.both_ways", "back", "must name a target of type redis, which back is not"),
        ("sources.edits.initial_load", True, "needs initial_load: false"),
        ("sources.edits.changed", "noted", "and no `changed`"),
        ("sources.edits.url", "redis://elsewhere/0", "must be of the same server"),
        ("sources.shop.type", "triggers", "must follow only sources that capture PostgreSQL's WAL, and shop is none"),
        ("targets.cache.both_ways", False, "with both_ways: true and adopt: false"),
        ("targets.cache.adopt", True, "with both_ways: true and adopt: false"),
        ("targets.cache.sources", None, "must follow only sources that capture PostgreSQL's WAL, and edits is none"),
        ("targets.cache.tables", None, "must map public.player to the same hash"),
        ("targets.back.origin", None, "targets.back must be of type postgres with origin: true"),
        ("targets.back.tables", {"public.player": {"columns": {"name": "title"}}}, "must take public.player as it is"),
        ("targets.back.tables", {"public.player": {"table": "game.player"}}, "must take public.player as it is"),
        ("targets.back.sources", ["edits", "shop"], "targets.back.tables must name the columns of public.player"),
    ],
)
def test_what_would_go_round_and_round_is_refused_with_what_to_set(
    tmp_path: Path, settings: dict[str, Any], place: str, value: object, said: str
) -> None:
    *path, last = place.split(".")
    section = settings
    for part in path:
        section = section[part]
    section[last] = value
    if value is None:
        del section[last]
    with pytest.raises(Misconfigured) as error:
        load(tmp_path, settings)
    assert said in str(error.value)
