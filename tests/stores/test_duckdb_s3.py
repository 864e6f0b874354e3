"""Exports of a DuckDB copy in an object store: a real server that speaks S3, read without Syncline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, S3FileSystem
from test_duckdb_parquet import apply, copied, fill, opened

from s3_server import ACCESS_KEY, SECRET_KEY, S3Proxy, fetch_s3proxy
from servers import required
from syncline.config import load_config
from syncline.config.settings import settings as listed
from syncline.errors import Misconfigured, Unavailable
from syncline.stores.duckdb import DuckDBConfig, DuckDBStore
from syncline.stores.duckdb.parquet import ParquetConfig
from syncline.stores.duckdb.parquet_s3 import S3Config
from syncline.testing.store_suite import Rows


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Proxy]:
    required(fetch_s3proxy)
    with S3Proxy.start(tmp_path / "s3") as server:
        yield server


def config(server: S3Proxy, folder: Path, keep_s: float = 600, **given: Any) -> ParquetConfig:
    login = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}
    place = {"bucket": "exports", "prefix": "shop/daily", "endpoint": server.endpoint, "region": "eu-1"}
    s3 = S3Config.model_validate({**place, **login, **given})
    return ParquetConfig(folder=folder / "exports", part_rows=10, keep_s=keep_s, s3=s3)


@pytest.fixture
def store(server: S3Proxy, tmp_path: Path) -> Iterator[DuckDBStore]:
    yield from opened(tmp_path, config(server, tmp_path))


class There:
    """What a reader finds in the bucket."""

    def __init__(self, server: S3Proxy) -> None:
        self._buckets = server.data_dir / "buckets"
        self._fs = S3FileSystem(
            access_key=ACCESS_KEY, secret_key=SECRET_KEY, region="eu-1",
            scheme="http", endpoint_override=server.endpoint.partition("://")[2],
        )  # fmt: skip

    def manifest(self) -> dict[str, Any]:
        with self._fs.open_input_stream("exports/shop/daily/manifest.json") as opened:
            found: dict[str, Any] = json.loads(opened.read())
        return found

    def rows(self, table: str = "public.item") -> list[tuple[Any, ...]]:
        files = [f"exports/shop/daily/{part['file']}" for part in self.manifest()["tables"][table]]
        whole = pa.concat_tables([pq.read_table(file, filesystem=self._fs) for file in files])
        return sorted(zip(*(column.to_pylist() for column in whole.columns), strict=True))

    def objects(self) -> dict[str, int]:
        """Each object, and when it was written, in ns: the server's files know, S3 itself tells whole seconds."""
        found = self._fs.get_file_info(FileSelector("exports/shop/daily", recursive=True, allow_not_found=True))
        return {info.path: (self._buckets / info.path).stat().st_mtime_ns for info in found if info.is_file}


@pytest.fixture
def there(server: S3Proxy) -> There:
    return There(server)


@pytest.mark.slow
def test_an_export_is_brought_whole_and_only_what_changed_is_brought_again(store: DuckDBStore, there: There) -> None:
    fill(store, 100, range(1, 96))
    assert store.export()
    assert there.rows() == copied(store)
    assert there.rows("shop.pair") == []
    before = there.objects()
    assert not store.export()
    assert there.objects() == before
    apply(store, Rows().upsert(110, 3, "new", None).delete(110, 93))
    assert store.export()
    assert there.rows() == copied(store)
    after = there.objects()
    new = {name for name in after if after[name] != before.get(name)}
    assert len(new) == 3  # two parts, and the manifest
    assert set(before) < set(after)  # what was replaced is there for those who read the export before


@pytest.mark.slow
def test_objects_that_were_replaced_go_when_their_time_is_over(server: S3Proxy, tmp_path: Path, there: There) -> None:
    (server.data_dir / "buckets/exports/shop/daily/public.item").mkdir(parents=True)
    mine = server.data_dir / "buckets/exports/shop/daily/public.item/mine.parquet"
    mine.write_bytes(b"of somebody else")
    for store in opened(tmp_path, config(server, tmp_path, keep_s=0)):
        for version in (100, 110, 120):
            fill(store, version, range(1, 30))
            assert store.export()
        assert there.rows() == copied(store)
        named = {p["file"] for parts in there.manifest()["tables"].values() for p in parts}
        replaced = set(there.manifest()["replaced"])
        ours = {n.removeprefix("exports/shop/daily/") for n in there.objects()} - {
            "manifest.json",
            "public.item/mine.parquet",
        }
        assert ours == named | replaced
        assert len(replaced) <= 4  # of the export before, and of no other
    assert mine.exists()


@pytest.mark.slow
def test_a_store_that_is_away_leaves_the_folder_as_it_should_be_and_is_made_up_for(
    store: DuckDBStore, server: S3Proxy, there: There
) -> None:
    fill(store, 100, range(1, 40))
    server.kill()
    with pytest.raises(Unavailable, match=f"bucket exports at {server.endpoint}: ") as away:
        store.export()
    assert "parquet.s3.endpoint" in away.value.remedy
    assert (away.value.code, SECRET_KEY in str(away.value)) == ("SL-PARQUET", False)
    server.restart()
    assert store.export()  # though nothing changed
    assert there.rows() == copied(store)
    assert not store.export()


@pytest.mark.slow
def test_an_upload_that_is_cut_off_leaves_the_export_before_and_the_next_one_is_whole(
    store: DuckDBStore, there: There, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 100, range(1, 96))
    store.export()
    before, changed = there.rows(), Rows()
    for key in range(1, 96):
        changed = changed.upsert(110, key, f"other {key}", None)
    apply(store, changed)

    def cut(self: object, name: str, file: Path) -> None:
        """As a process that is killed: some objects are there, one in part."""
        left.append(name)
        if len(left) > 3:
            file = file.with_suffix(".half")
            file.write_bytes(b"PAR1")
            put(self, name, file)
            raise KeyboardInterrupt
        put(self, name, file)

    left: list[str] = []
    mirror = type(store._db.exporter._mirror)  # type: ignore[union-attr]
    put: Callable[..., None] = mirror._put  # type: ignore[union-attr]
    with monkeypatch.context() as cutting:
        cutting.setattr(mirror, "_put", cut)
        with pytest.raises(KeyboardInterrupt):
            store.export()
    assert there.rows() == before
    assert store.export()
    assert there.rows() == copied(store) != before


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"secret_key": "not the one"}, {"bucket": "nothing"}])
def test_a_wrong_login_and_a_bucket_that_is_not_there_are_told_without_the_login(
    server: S3Proxy, tmp_path: Path, given: dict[str, str]
) -> None:
    parquet = config(server, tmp_path)
    assert parquet.s3 is not None
    s3 = S3Config.model_validate({**{n: getattr(parquet.s3, n) for n in S3Config.model_fields}, **given})
    for store in opened(tmp_path, parquet.model_copy(update={"s3": s3})):
        fill(store, 100, range(1, 5))
        with pytest.raises(Misconfigured, match=r"the login .* and its right to list") as refused:
            store.export()
        assert not {SECRET_KEY, ACCESS_KEY, "not the one"} & set(str(refused.value).split())


def test_the_login_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush-hush\n")
    (tmp_path / "syncline.yaml").write_text(
        "source: {dsn: host=db}\n"
        "target:\n  type: duckdb\n  path: a.duckdb\n  parquet:\n    folder: exports\n"
        f"    s3: {{bucket: exports, access_key: hushed, secret_key_file: {tmp_path / 'secret'}}}\n"
    )
    loaded = load_config(tmp_path / "syncline.yaml")
    s3 = loaded.targets["main"].store.parquet.s3  # type: ignore[attr-defined]
    assert (s3.access_key.get_secret_value(), s3.secret_key.get_secret_value()) == ("hushed", "hush-hush")
    shown = repr(loaded) + repr([(s.name, s.value) for s in listed(loaded)]) + str(loaded.model_dump())
    assert "hush" not in shown


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"access_key": "a"}, "go together"),
        ({"bucket": "a/b"}, "bucket"),
        ({"endpoint": "http://me:hush@store:9000"}, "endpoint"),
        ({"prefix": "/a"}, "prefix"),
    ],
)
def test_settings_that_can_not_be_are_refused(tmp_path: Path, given: dict[str, str], told: str) -> None:
    lines = "\n".join(f"      {name}: {value}" for name, value in {"bucket": "exports", **given}.items())
    (tmp_path / "syncline.yaml").write_text(
        "source: {dsn: host=db}\n"
        f"target:\n  type: duckdb\n  path: a.duckdb\n  parquet:\n    folder: exports\n    s3:\n{lines}\n"
    )
    with pytest.raises(Misconfigured, match=told) as refused:
        load_config(tmp_path / "syncline.yaml")
    assert "hush" not in str(refused.value)


@pytest.mark.slow
def test_doctor_says_whether_the_bucket_takes_exports_and_leaves_nothing_in_it(
    server: S3Proxy, tmp_path: Path, there: There
) -> None:
    def looked(**given: Any) -> tuple[str, str, str, str]:
        settings = DuckDBConfig(path=tmp_path / "copy.duckdb", parquet=config(server, tmp_path, **given))
        (found,) = [f for f in DuckDBStore.check(settings) if "bucket" in f.message.lower()]
        assert SECRET_KEY not in found.message + found.remedy
        return found.code, found.severity, found.message, found.remedy

    code, severity, message, _ = looked()
    assert (code, severity) == ("SL-PARQUET", "ok")
    assert server.endpoint in message
    assert there.objects() == {}
    code, severity, message, remedy = looked(secret_key="not the one")
    assert (code, severity) == ("SL-PARQUET", "error")
    assert "right to list, put and delete" in remedy
    code, severity, _, _ = looked(bucket="nowhere")
    assert (code, severity) == ("SL-PARQUET", "error")
    server.kill()
    code, severity, message, remedy = looked()
    assert (code, severity) == ("SL-UNAVAILABLE", "error")
    assert server.endpoint in message
    assert "parquet.s3.endpoint" in remedy
