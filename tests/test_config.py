"""The configuration: layers and where each value came from, secrets, and what bad input is told."""

from __future__ import annotations

import re
import string
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import OperationalError
from pydantic import SecretStr

from syncline.capture.source import Dsn, SourceConfig, translated
from syncline.config import Config, TargetConfig, load_config
from syncline.config.settings import settings as listed
from syncline.config.template import template
from syncline.config.tree import settings_of, store_settings
from syncline.dsn import describe, flaw
from syncline.errors import Misconfigured, SynclineError
from syncline.stores import STORES
from syncline.stores.memory import MemoryConfig

DSN = "postgresql://reader:hush@db.example:5433/shop"
MINIMAL = """\
source:
  dsn: ${DATABASE_URL}
  monitored_tables: [public.*]
target:
  type: duckdb
  path: analytics.duckdb
"""

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Write ``text`` (and overlays by keyword) and load it under an environment of this test's own."""
    monkeypatch.chdir(tmp_path)

    def loaded(text: str | None = MINIMAL, /, *, overlays: dict[str, str] | None = None, **options: object) -> Config:
        if text is not None:
            Path("syncline.yaml").write_text(text)
        for name, overlay in (overlays or {}).items():
            Path(f"syncline.{name}.yaml").write_text(overlay)
        variables = {"DATABASE_URL": DSN, **options.pop("env", {})}  # type: ignore[dict-item]
        return load_config(variables_from=variables, **options)  # type: ignore[arg-type]

    return loaded


@pytest.fixture
def refused(load: Load) -> Callable[..., str]:
    """Load what must be refused; the message."""

    def message(text: str | None = MINIMAL, /, **options: object) -> str:
        with pytest.raises(Misconfigured) as raised:
            load(text, **options)
        assert "hush" not in str(raised.value)
        return str(raised.value)

    return message


# ------------------------------------------------------------------------------------------------------------- layers


def test_six_lines_are_a_whole_configuration(load: Load) -> None:
    config = load()
    assert config.sources["main"].dsn.get_secret_value() == DSN
    assert config.sources["main"].monitored_tables == ("public.*",)
    assert config.targets["main"].type == "duckdb"
    assert config.targets["main"].store.model_dump()["path"] == Path("analytics.duckdb")
    assert config.followed_by("main") == ("main",)
    assert config.control.schema_name == "syncline"
    assert config.control_dsn == DSN
    assert config.log.path == Path("syncline-data/log")


def test_later_layers_win_and_each_value_knows_its_layer(load: Load) -> None:
    config = load(
        MINIMAL
        + "apply:\n  max_rows: 1\n  max_bytes: 100000\n  retry_max_s: 0.5\n  retry_base_s: 1\nenvironment: prod\n",
        overlays={"prod": "apply:\n  max_bytes: 200000\n  retry_max_s: 0.6\n  retry_base_s: 2\nlogging:\n"},
        env={"SYNCLINE_APPLY__RETRY_MAX_S": "0.7", "SYNCLINE_APPLY__RETRY_BASE_S": "3"},
        overrides={"apply.retry_base_s": "4"},
    )
    apply, origins = config.apply, config.provenance
    assert (apply.max_rows, apply.max_bytes, apply.retry_max_s, apply.retry_base_s) == (1, 200000, 0.7, 4.0)
    assert origins["apply.max_rows"] == "syncline.yaml:8"
    assert origins["apply.max_bytes"] == "syncline.prod.yaml:2"
    assert origins["apply.retry_max_s"] == "env SYNCLINE_APPLY__RETRY_MAX_S"
    assert origins["apply.retry_base_s"] == "command line"
    assert "apply.max_transaction_bytes" not in origins
    assert config.environment == "prod"


def test_the_environment_is_named_by_option_before_variable_before_file(load: Load) -> None:
    overlays = {name: f"source:\n  slot: {name}\n" for name in ("a", "b", "c")}
    text, env = MINIMAL + "environment: a\n", {"SYNCLINE_ENVIRONMENT": "b"}
    assert load(text, overlays=overlays).sources["main"].slot == "a"
    assert load(text, overlays=overlays, env=env).sources["main"].slot == "b"
    config = load(text, overlays=overlays, env=env, environment="c")
    assert (config.sources["main"].slot, config.environment) == ("c", "c")


def test_lists_are_replaced_not_joined(load: Load) -> None:
    overlay = "source:\n  monitored_tables: [public.b]\n"
    config = load(MINIMAL.replace("public.*", "public.a, x.y"), overlays={"prod": overlay}, environment="prod")
    assert config.sources["main"].monitored_tables == ("public.b",)


def test_an_overlay_of_another_type_leaves_the_settings_of_the_former_type_behind(load: Load) -> None:
    base = MINIMAL + "  tables: {public.a: {}}\n  memory_limit: 1GB\n"
    overlays = {"test": "target: {type: memory}\n", "other": "target:\n  type: qdrant\n  url: http://a:1\n"}
    config = load(base, overlays=overlays, environment="test")
    assert config.targets["main"].store == MemoryConfig()
    assert list(config.targets["main"].tables or ()) == ["public.a"]
    assert "targets.main.memory_limit" not in config.provenance
    config = load(base, overlays=overlays, environment="other")
    assert config.targets["main"].store.model_dump()["path"] is None
    assert load(base, env={"SYNCLINE_TARGET__TYPE": "memory"}).targets["main"].store == MemoryConfig()
    same = load(base, overlays={"same": "target: {type: duckdb, memory_limit: 2GB}\n"}, environment="same")
    assert same.targets["main"].store.model_dump()["path"] == Path("analytics.duckdb")


def test_a_wrong_setting_is_not_left_behind_with_the_former_type(refused: Callable[..., str]) -> None:
    message = refused(MINIMAL + "  pathh: x\n", overlays={"test": "target: {type: memory}\n"}, environment="test")
    assert "syncline.yaml:7: target.pathh is not a setting" in message


def test_several_sources_and_targets_have_names(load: Load) -> None:
    text = """\
sources:
  shop: {dsn: "host=a dbname=shop"}
  crm: {dsn: "host=b dbname=crm", slot: crm}
targets:
  lake: {type: duckdb, path: lake.duckdb}
  crm_only: {type: memory, sources: [crm]}
"""
    config = load(text, env={"SYNCLINE_SOURCES__CRM__BATCH_ROWS": "7"})
    assert list(config.sources) == ["shop", "crm"]
    assert config.sources["crm"].batch_rows == 7
    assert config.followed_by("lake") == ("shop", "crm")
    assert config.followed_by("crm_only") == ("crm",)
    assert config.control_dsn == "host=a dbname=shop"


def test_the_short_name_means_the_only_source_whatever_it_is_called(load: Load) -> None:
    text = "sources: {shop: {dsn: host=a}}\ntarget: {type: memory}\n"
    config = load(text, env={"SYNCLINE_SOURCE__SLOT": "mine"}, overrides={"source.binary": "false"})
    assert list(config.sources) == ["shop"]
    assert (config.sources["shop"].slot, config.sources["shop"].binary) == ("mine", False)


def test_no_file_is_needed_when_the_environment_names_a_source(load: Load) -> None:
    config = load(None, env={"SYNCLINE_SOURCE__DSN": DSN, "SYNCLINE_TARGET__TYPE": "memory"})
    assert config.sources["main"].dsn.get_secret_value() == DSN
    assert config.targets["main"].type == "memory"


def test_text_from_the_environment_becomes_lists_sizes_and_null(load: Load) -> None:
    env = {
        "SYNCLINE_SOURCE__EXCLUDED_TABLES": "public.log_*, audit.*",
        "SYNCLINE_SOURCE__BINARY": "null",
        "SYNCLINE_APPLY__MAX_BYTES": "64 MiB",
        "SYNCLINE_LOG__MAX_BYTES": "2GB",
        "SYNCLINE_LOGGING__JSON": "yes",
        "SYNCLINE_LOGGING__LEVEL": "",
    }
    config = load(MINIMAL.replace("monitored", "binary: true\n  monitored"), env=env)
    assert config.sources["main"].excluded_tables == ("public.log_*", "audit.*")
    assert config.sources["main"].binary is None
    assert config.apply.max_bytes == 64 * 1024 * 1024
    assert config.log.max_bytes == 2_000_000_000
    assert config.logging.json_lines is True
    assert config.logging.level == "info"


def test_yaml_words_of_old_stay_text(load: Load) -> None:
    assert load(MINIMAL + "control: {schema: no}\n").control.schema_name == "no"


def test_anchors_and_merges_work(load: Load) -> None:
    text = """\
sources:
  a: &a {dsn: host=a, slot: a}
  b: {<<: *a, slot: b}
target: {type: memory}
"""
    config = load(text)
    assert config.sources["b"].dsn.get_secret_value() == "host=a"
    assert config.sources["b"].slot == "b"


def test_a_configuration_can_be_built_in_code() -> None:
    config = Config(
        sources={"main": SourceConfig(dsn=SecretStr(DSN))},
        targets={"main": TargetConfig(type="memory", store=MemoryConfig())},
    )
    assert config == Config.model_validate({"source": {"dsn": DSN}, "target": {"type": "memory"}})
    assert dict(config.provenance) == {}


def test_the_tree_is_frozen(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().apply.max_rows = 3  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------------- documented names

DOCUMENTED = [
    ("CDC_REPLICATION_SLOT_NAME", "chrono_scraper_cdc", lambda c: c.sources["main"].slot, "chrono_scraper_cdc"),
    (
        "CDC_MONITORED_TABLES",
        "users, projects,app.pages_v2",
        lambda c: c.sources["main"].monitored_tables,
        ("public.users", "public.projects", "app.pages_v2"),
    ),
    ("CDC_MAX_BATCH_SIZE", "1000", lambda c: c.sources["main"].batch_rows, 1000),
    (
        "POSTGRES_REPLICATION_URL",
        "host=direct",
        lambda c: c.sources["main"].replication,
        "host=direct",
    ),
    ("POSTGRES_SCHEMA", "jeseci_academy", lambda c: c.control.schema_name, "jeseci_academy"),
    ("SYNC_BATCH_SIZE", "50", lambda c: c.apply.max_rows, 50),
    ("DATA_SYNC_BATCH_SIZE", "10000", lambda c: c.apply.max_rows, 10000),
    ("LOG_LEVEL", "WARN", lambda c: c.logging.level, "warning"),
    ("DUCKDB_DATABASE_PATH", "/data/x.duckdb", lambda c: c.targets["main"].store.path, Path("/data/x.duckdb")),
    ("DUCKDB_MEMORY_LIMIT", "3GB", lambda c: c.targets["main"].store.memory_limit, "3GB"),
    ("DUCKDB_WORKER_THREADS", "4", lambda c: c.targets["main"].store.threads, 4),
]


@pytest.mark.parametrize(("name", "text", "value", "expected"), DOCUMENTED, ids=[row[0] for row in DOCUMENTED])
def test_names_of_other_documents_are_understood(
    load: Load, name: str, text: str, value: Callable[[Config], object], expected: object
) -> None:
    config = load(MINIMAL.replace("  monitored_tables: [public.*]\n", ""), env={name: text})
    assert value(config) == expected
    assert f"env {name}" in config.provenance.values()


def test_a_setting_of_the_file_that_another_system_s_variable_overrules_is_told_and_no_other(load: Load) -> None:
    text = (
        "source: {dsn: host=a, monitored_tables: [public.*]}\n"
        "targets:\n  graph:\n    type: neo4j\n    uri: bolt://here\n    password: ${NEO4J_PASSWORD}\n    user: me\n"
        "apply: {max_rows: 50}\n"
    )
    env = {
        "NEO4J_URI": "bolt://there",
        "NEO4J_PASSWORD": "hush",
        "NEO4J_DATABASE": "shop",  # the file says nothing of it
        "CDC_MONITORED_TABLES": "public.*",  # nor anything else
        "SYNC_BATCH_SIZE": "50",
        "SYNCLINE_TARGETS__GRAPH__USER": "you",  # it says what it is for
    }
    config = load(text, env=env)
    (told,) = config.overruled
    assert config.targets["graph"].store.uri == "bolt://there"
    assert (told.setting, told.variable, told.origin) == ("targets.graph.uri", "NEO4J_URI", "syncline.yaml:5")
    assert config.provenance["targets.graph.uri"] == "env NEO4J_URI"
    assert "there" not in told.message + told.remedy  # it might be a secret
    assert load(text, env={"NEO4J_PASSWORD": "hush"}).overruled == ()


def test_a_store_s_variables_make_a_target_where_there_is_none(load: Load) -> None:
    config = load("source: {dsn: host=a}\n", env={"DUCKDB_DATABASE_PATH": "a.duckdb", "DUCKDB_UNRELATED": "1"})
    assert config.targets["duckdb"].type == "duckdb"


def test_variables_of_a_store_that_is_not_configured_are_none_of_our_business(load: Load) -> None:
    config = load("source: {dsn: host=a}\ntarget: {type: memory}\n", env={"DUCKDB_DATABASE_PATH": "a.duckdb"})
    assert [t.type for t in config.targets.values()] == ["memory"]


def test_the_parts_of_a_connection_fill_in_for_a_missing_dsn_only(load: Load) -> None:
    env = {"POSTGRES_HOST": "db", "POSTGRES_PORT": "5433", "POSTGRES_DB": "shop", "POSTGRES_PASSWORD": "it's"}
    config = load("target: {type: memory}\nsource: {}\n", env=env)
    assert config.sources["main"].dsn.get_secret_value() == r"host=db port=5433 dbname=shop password=it\'s"
    assert config.provenance["sources.main.dsn"].startswith("env POSTGRES_HOST, ")
    assert load(env=env).sources["main"].dsn.get_secret_value() == DSN


def test_the_parts_of_two_connections_are_of_a_redis_source_and_of_what_is_in_postgresql(load: Load) -> None:
    env = {"REDIS_HOST": "cache", "REDIS_PASSWORD": "a@b", "POSTGRES_HOST": "db", "POSTGRES_DB": "shop"}
    file = (
        "source: {type: redis, table: t, columns: {c: {sorted_set: s}}}\n"
        "target: {type: postgres}\nlog: {path: /tmp/log}\n"
    )
    config = load(file, env=env)
    source: Any = config.sources["main"]
    assert source.url.get_secret_value() == "redis://:a%40b@cache:6379/0"
    target: Any = config.targets["main"].store
    assert config.control_dsn == target.dsn.get_secret_value() == "host=db dbname=shop"


def test_contradicting_variables_are_refused(refused: Callable[..., str]) -> None:
    message = refused(env={"SYNC_BATCH_SIZE": "50", "DATA_SYNC_BATCH_SIZE": "60"})
    assert "SYNC_BATCH_SIZE" in message
    assert "env DATA_SYNC_BATCH_SIZE" in message
    assert "apply.max_rows" in message


def test_variables_that_kubernetes_and_tests_set_are_no_settings(load: Load) -> None:
    names = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR", "CONFIG")
    load(env={f"SYNCLINE_{name}": "syncline.yaml" for name in (*names, "TEST_DSN", "SOAK_CYCLES", "SERVERS_DIR")})


def test_two_targets_with_one_folder_of_files_are_refused(load: Load, refused: Callable[..., str]) -> None:
    text = """
source: {dsn: host=a}
targets:
  one: {type: duckdb, path: one.duckdb, parquet: {folder: exports}}
  two: {type: duckdb, path: two.duckdb, parquet: {folder: %s}}
"""
    message = refused(text % "./exports/../exports")
    assert "targets.one.parquet.folder and targets.two.parquet.folder are one folder" in message
    assert len(load(text % "others").targets) == 2


# ------------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize("line", ["dsn_file: {}", "dsn: ${{file:{}}}"])
def test_secrets_come_from_files(load: Load, tmp_path: Path, line: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text(DSN + "\n")
    config = load(MINIMAL.replace("dsn: ${DATABASE_URL}", line.format(secret)))
    assert config.sources["main"].dsn.get_secret_value() == DSN
    assert str(secret) in config.provenance["sources.main.dsn"]


def test_a_secret_s_file_can_be_named_by_the_environment_over_the_file_s_own(load: Load, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host=other")
    config = load(env={"SYNCLINE_SOURCE__DSN_FILE": "secret"})
    assert config.sources["main"].dsn.get_secret_value() == "host=other"


def test_references_have_defaults_and_can_be_escaped(load: Load) -> None:
    text = MINIMAL.replace("analytics.duckdb", "${NOT_SET:-x}/$${literal}.duckdb")
    assert load(text).targets["main"].store.model_dump()["path"] == Path("x/${literal}.duckdb")


def test_the_list_of_settings_shows_everything_but_secrets(load: Load) -> None:
    found = {s.name: s for s in listed(load(env={"SYNCLINE_CONTROL__DSN": "host=c password=hush"}))}
    assert found["sources.main.dsn"].value == "(hidden) db.example:5433/shop"
    assert found["sources.main.dsn"].origin == "syncline.yaml:2 with ${DATABASE_URL}"
    assert found["sources.main.slot"] == ("sources.main.slot", "syncline", "default")
    assert found["targets.main.path"][1:] == ("analytics.duckdb", "syncline.yaml:6")
    assert found["control.schema"].value == "syncline"
    assert found["sources.main.monitored_tables"].value == ["public.*"]
    assert not [s for s in found.values() if "hush" in str(s)]


def test_the_tree_s_own_text_hides_secrets(load: Load) -> None:
    assert "hush" not in repr(load())


# ----------------------------------------------------------------------------------------------------------- bad input

BAD = {
    "a wrong key": ("source:\n  dsn: host=a\n  slott: x\n", ["syncline.yaml:3", "source.slott", "Did you mean slot?"]),
    "a wrong section": ("sauce:\n  dsn: host=a\n", ["syncline.yaml:1", "sauce", "Did you mean source?"]),
    "a key in the wrong section": (
        "source:\n  dsn: host=a\nmonitored_tables: [a.b]\n",
        ["syncline.yaml:3", "monitored_tables", "source.monitored_tables"],
    ),
    "a wrong key of a target": (
        "source: {dsn: host=a}\ntarget:\n  type: duckdb\n  pathh: x\n",
        ["syncline.yaml:4", "target.pathh", "Did you mean path?", "target.path is missing"],
    ),
    "a wrong key of a named source": (
        "sources:\n  a:\n    dsn: host=a\n  b:\n    dsn: host=b\n    slot: b\n    binry: true\n",
        ["syncline.yaml:7", "sources.b.binry", "Did you mean binary?"],
    ),
    "a wrong type": (
        "source: {dsn: host=a}\napply:\n  max_rows: many\n",
        ["syncline.yaml:3", "apply.max_rows", "'many'"],
    ),
    "a value out of range": (
        "source:\n  dsn: host=a\n  batch_rows: 0\n",
        [":3", "source.batch_rows", "equal to 1", "0"],
    ),
    "a wrong choice": (
        "source: {dsn: host=a}\nlogging:\n  level: loud\n",
        ["syncline.yaml:3", "logging.level", "'debug'", "'loud'"],
    ),
    "a wrong list item": (
        "source:\n  dsn: host=a\n  monitored_tables:\n    - a.b\n    - {x: 1}\n",
        ["syncline.yaml:5", "source.monitored_tables.1"],
    ),
    "a section that is a value": ("source: host=a\n", ["syncline.yaml:1", "source", "settings of its own"]),
    "a list of sources": ("sources:\n  - dsn: host=a\n", ["syncline.yaml:1", "sources", "settings of its own"]),
    "a bad name": ("sources:\n  Shop-1: {dsn: host=a}\n", ["syncline.yaml:2", "sources.Shop-1", "lower-case"]),
    "no source": ("target: {type: memory}\n", ["syncline.yaml: there is no source", "`source:`"]),
    "an empty source": ("source:\n", ["syncline.yaml:1", "source.dsn is missing", "Connection to the source"]),
    "an unknown type of target": (
        "source: {dsn: host=a}\ntarget:\n  type: duckdbb\n",
        ["syncline.yaml:3", "target.type", "duckdbb", "Did you mean duckdb?"],
    ),
    "a target without a type": (
        "source: {dsn: host=a}\ntarget: {}\n",
        ["syncline.yaml:2", "target", "type is required"],
    ),
    "a target of an unknown source": (
        "source: {dsn: host=a}\ntargets:\n  t:\n    type: memory\n    sources: [b]\n",
        ["syncline.yaml:5", "targets.t.sources", "b", "main"],
    ),
    "two sources on one slot": (
        "sources: {a: {dsn: host=a}, b: {dsn: host=a}}\n",
        ["sources a and b", "slot syncline", "slot of its own"],
    ),
    "a key twice": ("source:\n  dsn: host=a\n  slot: a\n  slot: b\n", ["syncline.yaml:4", "source.slot", "line 3"]),
    "source and sources.main": (
        "source: {dsn: host=a}\nsources: {main: {dsn: host=b}}\n",
        ["syncline.yaml:1", "the same"],
    ),
    "broken indentation": ("source:\n  dsn: a\n slot: b\n", ["syncline.yaml:3:2", "not YAML"]),
    "an unclosed quote": ('source:\n  dsn: "a\n', ["syncline.yaml:3:1", "not YAML"]),
    "a tab": ("source:\n\tdsn: a\n", ["syncline.yaml:2:1", "not YAML"]),
    "a list at the top": ("- source\n", ["syncline.yaml:1", "top"]),
    "two documents": ("a: 1\n---\nb: 2\n", ["syncline.yaml:2:1", "not YAML"]),
    "an alias of itself": ("source: &a\n  dsn: *a\n", ["syncline.yaml:1", "without end"]),
    "a complex key": ("? [a, b]\n: c\n", ["syncline.yaml:1", "plain name"]),
    "a merge of a value": ("source:\n  <<: x\n", ["syncline.yaml:2", "<<"]),
    "a variable that is not set": ("source:\n  dsn: ${NOT_SET}\n", ["syncline.yaml:2", "source.dsn", "NOT_SET"]),
    "a secret's file that is missing": (
        "source:\n  dsn_file: nowhere\n",
        ["syncline.yaml:2", "nowhere", "No such file"],
    ),
    "a secret and its file": (
        "source:\n  dsn: host=a\n  dsn_file: syncline.yaml\n",
        ["syncline.yaml:3", "dsn and dsn_file", "keep one"],
    ),
    "an environment that is a path": ("source: {dsn: a}\nenvironment: ../x\n", ["../x"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_where_and_what(refused: Callable[..., str], case: str) -> None:
    text, parts = BAD[case]
    message = refused(text)
    assert [part for part in parts if part not in message] == [], message


def test_every_problem_gets_its_own_line(refused: Callable[..., str]) -> None:
    message = refused("source:\n  dsn: host=a\n  slott: x\napply:\n  max_rows: 0\n  linger: 1\n")
    places = [line.partition(": ")[0] for line in message.splitlines()]
    assert sorted(places) == ["syncline.yaml:3", "syncline.yaml:5", "syncline.yaml:6"]


def test_a_wrong_variable_is_told_its_nearest_name(refused: Callable[..., str]) -> None:
    message = refused(env={"SYNCLINE_LOGG__PATH": "/x", "SYNCLINE_SOURCE__SLOTT": "a", "SYNCLINE_LOG_LEVEL": "info"})
    assert "env SYNCLINE_LOGG__PATH" in message
    assert "Did you mean SYNCLINE_LOG__PATH?" in message
    assert "Did you mean SYNCLINE_SOURCE__SLOT?" in message
    assert "env SYNCLINE_LOG_LEVEL" in message


def test_a_variable_over_a_section_is_refused(refused: Callable[..., str]) -> None:
    message = refused(env={"SYNCLINE_APPLY": "1", "SYNCLINE_APPLY__MAX_ROWS": "2"})
    assert "SYNCLINE_APPLY__MAX_ROWS" in message


def test_a_missing_file_points_to_init(refused: Callable[..., str]) -> None:
    assert "syncline init" in refused(None)
    assert "elsewhere.yaml does not exist" in refused(path=Path("elsewhere.yaml"))
    assert "can't be read" in refused(path=Path("."))


def test_a_missing_overlay_names_those_there_are(refused: Callable[..., str]) -> None:
    message = refused(overlays={"production": ""}, environment="prodution")
    assert "syncline.prodution.yaml" in message
    assert "There are: production." in message


def test_a_wrong_override_is_told(refused: Callable[..., str]) -> None:
    message = refused(overrides={"apply.max_row": "1"})
    assert "command line" in message
    assert "Did you mean max_rows?" in message


def test_a_secret_with_the_wrong_form_is_not_repeated(refused: Callable[..., str]) -> None:
    message = refused("source:\n  dsn: [hush]\n")
    assert "source.dsn" in message


SECRET = "GEHEIMNIS"
FORMS = {
    "the login of a URL": "postgresql://u:{}@h:1/db",
    "a parameter of a URL": "postgresql://h:1/db?user=u&password={}",
    "a keyword": "host=h port=1 dbname=db password={} user=u",
    "a quoted keyword": "password='{}' host=h port=1 dbname=db",
}


@pytest.mark.parametrize("form", FORMS)
@given(around=st.tuples(*[st.text(string.printable, max_size=8)] * 2))
@example(around=("a/", ""))
@example(around=("a@", ""))
@example(around=("1/", "?"))
@example(around=("1?", "#"))
@example(around=("a/b@c?", "@"))
@example(around=("%zz", "%"))
@example(around=("", "' x='"))
@example(around=("a b=", ""))
@example(around=("", "%80"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_a_password_that_is_not_encoded_is_taken_whole_or_refused_and_never_shown(
    load: Load, form: str, around: tuple[str, str]
) -> None:
    dsn = FORMS[form].format(f"{around[0]}{SECRET}{around[1]}")
    if flaw(dsn) is None:
        assert describe(dsn) == "h:1/db"
        assert SECRET not in str(listed(load(env={"DATABASE_URL": dsn})))
    else:
        with pytest.raises(Misconfigured, match=r"^syncline\.yaml:2 with \$\{DATABASE_URL\}: source\.dsn") as refused:
            load(env={"DATABASE_URL": dsn})
        assert SECRET not in str(refused.value)
    with pytest.raises(SynclineError) as told, translated(Dsn(dsn, "source.dsn")):
        raise OperationalError(f"connection to server at {dsn} failed") if flaw(dsn) else OperationalError("no route")
    assert SECRET not in str(told.value)


@pytest.mark.parametrize("dsn", ["u:a/GEHEIMNIS@h:1/db", "u:a@GEHEIMNIS@h:1/db", "u:1/a?GEHEIMNIS@h/db", "u:GEHEIMNIS"])
def test_every_setting_that_is_a_connection_string_says_where_it_is_and_how_to_write_it(
    refused: Callable[..., str], dsn: str
) -> None:
    text = "source:\n  dsn: host=a\n  {}\ncontrol:\n  {}\ntarget:\n  type: postgres\n  {}\n"
    whole = ["replication_dsn: x=", "dsn: x=", "dsn: host=b"]
    wrong = {"source.replication_dsn": 3, "control.dsn": 5, "target.dsn": 8}
    for number, (setting, line) in enumerate(wrong.items()):
        lines = ["slot: a", "schema: c", "dsn: host=b"]
        lines[number] = f"{whole[number].partition(':')[0]}: postgresql://{dsn}"
        message = refused(text.format(*lines))
        assert f"syncline.yaml:{line}: {setting} " in message
        assert "@ as %40, / as %2F" in message
        assert SECRET not in message


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("redis", "url: redis://u:a/GEHEIMNIS@h:1/0"),
        ("redis", "url: redis://u:12?GEHEIMNIS@h:1/0"),
        ("redis", "url: redis://u:12#GEHEIMNIS@h:1/0"),
        ("redis", "url: redis://u:GEHEIMNIS"),
        ("redis", "url: http://u:GEHEIMNIS@h"),
        ("neo4j", "uri: bolt://u:GEHEIMNIS@h:1"),
        ("qdrant", "url: http://u:GEHEIMNIS@h:1"),
        ("neo4j", "uri: bolt://h\n  password: [GEHEIMNIS]"),
        ("neo4j", "uri: bolt://h\n  password: *GEHEIMNIS"),
        ("bolt://u:GEHEIMNIS@h", "uri: bolt://h"),
    ],
)
def test_a_login_in_the_address_of_a_store_is_not_shown(refused: Callable[..., str], kind: str, line: str) -> None:
    message = refused(f"source: {{dsn: host=a}}\ntarget:\n  type: {kind}\n  {line}\n")
    assert SECRET not in message
    assert re.match(r"syncline.yaml:\d", message)


def test_an_address_of_redis_that_is_read_as_it_was_meant_is_taken(load: Load) -> None:
    for url in ("redis://u:a@b@h:1/0", "redis://:p%2F@h/0", "unix:///run/redis.sock?db=1", "rediss://[::1]:1"):
        load(f"source: {{dsn: host=a}}\ntarget: {{type: redis, url: '{url}'}}\n")


def test_a_tree_that_is_built_in_code_refuses_without_repeating() -> None:
    for tree in ({"source": {"dsn": f"postgresql://u:a/{SECRET}@h"}}, {"source": {"dsn": [SECRET]}}):
        with pytest.raises(ValueError, match="sources") as error:
            Config.model_validate(tree)
        assert SECRET not in str(error.value)


@pytest.mark.parametrize("origin", ["dsn: ${EMPTY}", "dsn_file: empty", "dsn: ${file:empty}", "dsn: '  '"])
def test_an_empty_secret_is_refused_with_where_it_should_come_from(
    refused: Callable[..., str], tmp_path: Path, origin: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    message = refused(f"source:\n  {origin}\ntarget: {{type: memory}}\n", env={"EMPTY": ""})
    assert message.startswith("syncline.yaml:2")
    assert "source.dsn is empty" in message
    assert len(message.splitlines()) == 1
    assert re.search(r"\$\{EMPTY\}|from empty|file:empty|:2: ", message)


def test_an_optional_secret_that_is_empty_is_refused_too(refused: Callable[..., str]) -> None:
    message = refused("source: {dsn: host=a}\ntarget: {type: neo4j, uri: bolt://a, password: '${P}'}\n", env={"P": ""})
    assert "syncline.yaml:2 with ${P}: target.password is empty" in message
    assert "Write `null`" in message


@pytest.mark.parametrize("key", ["monitored_tables", "excluded_tables"])
def test_a_pattern_that_is_none_is_told_with_its_place(refused: Callable[..., str], key: str) -> None:
    message = refused(f"source:\n  dsn: host=a\n  {key}:\n    - a.b\n    - a.b.c\n")
    assert f"syncline.yaml:5: source.{key}.1 must be a table name or pattern" in message
    assert "schema.table" in message
    assert "'a.b.c'" in message


def test_bytes_that_are_no_text_are_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "syncline.yaml").write_bytes(b"source:\n  dsn: \xff\xfe\n")
    with pytest.raises(Misconfigured, match="not YAML"):
        load(None)


def test_multiplying_aliases_end(refused: Callable[..., str]) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    assert "without end" in refused("\n".join(lines))
    assert "nested too deeply" in refused("a: " + "[" * 5000)


names = st.text(string.ascii_letters + string.digits + "_-. ", min_size=1, max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([*STORES, "${X}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=10,
)
known = st.sampled_from(["source", "sources", "target", "targets", "log", "apply", "control", "logging", "environment"])
sections = st.dictionaries(known | names, st.dictionaries(names | st.sampled_from(["dsn", "type"]), values) | values)


@given(tree=sections)
@example(tree={"sources": {"a": None}})
@example(tree={"sources": [1], "source": {}})
@example(tree={"targets": {"t": {"type": ["x"]}}})
@example(tree={"source": {"dsn_file": {"a": 1}}})
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_whatever_stands_in_the_file_is_loaded_or_refused(load: Load, tree: dict[str, object]) -> None:
    with suppress(Misconfigured):
        load(yaml.safe_dump(tree))


@given(text=st.text("0_.:-{}[]#&*!|>'\"%@` \n") | st.text(string.printable + "äß\u2028", max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_any_text_is_loaded_or_refused(load: Load, text: str) -> None:
    with suppress(Misconfigured):
        load(text)


@given(given=st.dictionaries(names, st.text(max_size=10), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_any_variables_and_overrides_are_taken_or_refused(load: Load, given: dict[str, str]) -> None:
    for options in ({"env": {f"SYNCLINE_{name.upper()}": v for name, v in given.items()}}, {"overrides": given}):
        with suppress(Misconfigured):
            load(**options)


# ------------------------------------------------------------------------------------------------------------ template


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^(\s*)#(\S)", r"\1\2", text)


@pytest.mark.parametrize("kind", STORES)
def test_the_new_file_holds_the_defaults_commented_or_not(load: Load, kind: str) -> None:
    text = template(kind)
    given = {
        "COPY_URL": "postgresql://localhost/copy",
        "REDIS_URL": "redis://localhost/0",
        "NEO4J_URI": "bolt://localhost:7687",
    }
    required = {n: f for n, f in settings_of(store_settings(kind)).items() if f.is_required() or f.examples}
    examples = {n: str((f.examples or ["analytics.duckdb"])[0]) for n, f in required.items()}
    target = {"type": kind, **{n: given.get(e.strip("${}"), e) for n, e in examples.items()}}
    expected = Config.model_validate({"source": {"dsn": DSN}, "target": target})
    assert load(text, env=given).model_dump() == expected.model_dump()
    assert load(uncommented(text), env=given).model_dump() == expected.model_dump()


def test_the_new_file_describes_every_setting(load: Load) -> None:
    text = uncommented(template("duckdb"))
    config = load(text)
    origins = [s for s in listed(config) if s.origin == "default"]
    assert origins == []
    for line, above in zip(text.splitlines()[1:], text.splitlines(), strict=False):
        if re.match(r"\s*\w+: ", line):
            assert above.lstrip().startswith("# "), line


# ---------------------------------------------------------------------------------------------------------------- paths


def test_a_tilde_is_the_home_folder_in_every_path(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "dsn").write_text(f"{DSN}\n")
    config = load(
        "source: {dsn_file: ~/dsn}\ntarget: {type: duckdb, path: ~/a.duckdb}\n", overrides={"log.path": "~/log"}
    )
    assert config.sources["main"].dsn.get_secret_value() == DSN
    assert config.log.path == tmp_path / "log"
    assert config.targets["main"].store.model_dump()["path"] == tmp_path / "a.duckdb"


def test_a_file_in_a_folder_that_may_not_be_entered_is_said_to_be_unreadable(tmp_path: Path) -> None:
    file = tmp_path / "locked" / "syncline.yaml"
    file.parent.mkdir()
    file.write_text("")
    file.parent.chmod(0)
    script = (
        "import os, sys; from pathlib import Path; from syncline.config import load_config\n"
        "from syncline.errors import Misconfigured\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"  # root may enter everywhere
        "try: load_config(Path(sys.argv[1]), variables_from={})\n"
        "except Misconfigured as error: print(error)\n"
    )
    try:
        told = subprocess.run([sys.executable, "-c", script, str(file)], check=True, capture_output=True, text=True)
    finally:
        file.parent.chmod(0o700)
    assert told.stdout == f"{file} can't be read: Permission denied.\n"


def test_a_source_that_monitors_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "syncline.yaml").write_text("source:\n  dsn: host=db\n  monitored_tables: []\n")
    with pytest.raises(Misconfigured, match=r"syncline\.yaml:3: source\.monitored_tables"):
        load_config(tmp_path / "syncline.yaml")


def test_narrowed_to_some_sources_the_control_schema_stays_where_it_is(load: Load) -> None:
    config = load(
        "sources:\n"
        "  main: {dsn: host=a}\n"
        "  board: {type: redis, url: redis://h, table: t, columns: {c: {sorted_set: s}}}\n"
        "targets:\n"
        "  all: {type: memory}\n"
        "  other: {type: memory, sources: [main]}\n"
    )
    narrow = config.narrowed(["board"])
    assert (list(narrow.sources), list(narrow.targets), narrow.control_dsn) == (["board"], ["all"], "host=a")
