"""What a Qdrant server would be sent, held against the client's own models, for REST and for gRPC. No server runs here:
a transport keeps what the client would have put on the line, and answers with what those models say an answer is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pyarrow as pa
import pytest
from pydantic import ValidationError
from qdrant_client import QdrantClient, models
from qdrant_client.conversions.conversion import RestToGrpc
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from syncline.errors import Misconfigured, Unavailable
from syncline.stores.qdrant.copy import QdrantCopy
from syncline.stores.qdrant.points import Dense, Refused, Sparse, Spec, Stored, Which
from syncline.stores.qdrant.server import ServerPoints, guarded_payload, guarded_upserts, translate
from syncline.stores.qdrant.store import QdrantConfig, QdrantStore
from syncline.testing.store_suite import ITEM

POINT = Stored(7, {"id": 7, "_syncline_version": 100}, {"dense": [0.5, 1.0], "words": Sparse([1, 4], [0.5, 2.0])})
COMPLETED = {"operation_id": 1, "status": "completed"}


class Line:
    """Keeps requests and hands out answers: a status and a result for each, the last one again and again."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, Any]] = []
        self.answers: list[tuple[int, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.sent.append((request.method, request.url.raw_path.decode(), body))
        status, result = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return httpx.Response(status, json={"time": 0.1, "status": "ok", "result": result})


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def points(line: Line) -> Iterator[ServerPoints]:
    transport = httpx.MockTransport(line)
    client = QdrantClient(url="http://qdrant:6333", check_compatibility=False, transport=transport)
    points = ServerPoints(client, "qdrant:6333")
    yield points
    points.close()


def test_a_guarded_write_waits_and_names_the_version_that_it_must_not_be_older_than(
    line: Line, points: ServerPoints
) -> None:
    line.answers = [(200, [COMPLETED, COMPLETED])]
    points.upsert("a b/c", [POINT, POINT._replace(id=8)], [100, 101])
    ((method, path, body),) = line.sent
    assert (method, path) == ("POST", "/collections/a%20b%2Fc/points/batch?wait=true")
    first, second = body["operations"]
    guard = {"must_not": [{"key": "_syncline_version", "range": {"gt": 100}}]}
    assert first["upsert"]["update_filter"] == guard
    assert second["upsert"]["update_filter"]["must_not"][0]["range"] == {"gt": 101}
    assert first["upsert"]["points"] == [
        {
            "id": 7,
            "vector": {"dense": [0.5, 1.0], "words": {"indices": [1, 4], "values": [0.5, 2.0]}},
            "payload": POINT.payload,
        }
    ]


def test_requests_are_valid_for_the_clients_own_models_and_go_over_grpc_alike() -> None:
    operations = [*guarded_upserts([POINT, POINT], [100, 101]), guarded_payload(POINT, 100)]
    for operation in operations:
        plain = operation.model_dump(exclude_none=True)
        assert type(operation).model_validate(plain).model_dump(exclude_none=True) == plain
    upsert = RestToGrpc.convert_update_operation(operations[0]).upsert
    assert upsert.update_filter.must_not[0].field.range.gt == 100
    assert upsert.points[0].id.num == 7
    vectors = upsert.points[0].vectors.vectors.vectors
    assert list(vectors["dense"].dense.data) == [0.5, 1.0]
    assert list(vectors["words"].sparse.indices) == [1, 4]
    assert upsert.points[0].payload["_syncline_version"].integer_value == 100
    overwrite = RestToGrpc.convert_update_operation(operations[2]).overwrite_payload
    assert [i.num for i in overwrite.points_selector.filter.must[0].has_id.has_id] == [7]
    assert overwrite.points_selector.filter.must_not[0].field.range.gt == 100


def test_many_versions_in_one_call_share_the_greatest_as_their_guard() -> None:
    few = list(guarded_upserts([POINT] * 32, range(32)))
    assert len(few) == 32
    (one,) = guarded_upserts([POINT] * 33, range(33))
    assert isinstance(one.upsert, models.PointsList)
    assert len(one.upsert.points) == 33
    assert one.upsert.update_filter is not None
    (condition,) = one.upsert.update_filter.must_not  # type: ignore[misc, union-attr]
    assert condition.range.gt == 32  # type: ignore[union-attr]


def test_collections_are_made_with_named_vectors_and_payload_indexes(line: Line, points: ServerPoints) -> None:
    line.answers = [(200, True), (200, COMPLETED)]
    points.create("docs", Spec({"dense": Dense(3, "euclid")}, frozenset({"words"}), {"_syncline_version": "integer"}))
    (method, path, body), (_, index, indexed) = line.sent
    assert (method, path) == ("PUT", "/collections/docs")
    assert body == {"vectors": {"dense": {"size": 3, "distance": "Euclid"}}, "sparse_vectors": {"words": {}}}
    assert models.CreateCollection.model_validate(body)
    assert index == "/collections/docs/index?wait=true"
    assert indexed == {"field_name": "_syncline_version", "field_schema": "integer"}


def test_rows_are_read_without_vectors_unless_they_are_asked_for(line: Line, points: ServerPoints) -> None:
    line.answers = [(200, {"points": [{"id": 7, "payload": {"id": 7}}], "next_page_offset": 9})]
    found, following = points.page("docs", Which(buried=False, through=5), None, vectors=False)
    assert (found, following) == ([Stored(7, {"id": 7}, {})], 9)
    ((_, path, body),) = line.sent
    assert path == "/collections/docs/points/scroll"
    assert (body["limit"], body["with_vector"], body["with_payload"]) == (1000, False, True)
    assert body["filter"]["must"] == [{"is_empty": {"key": "_syncline_deleted"}}]
    assert body["filter"]["must_not"] == [{"key": "_syncline_version", "range": {"gt": 5}}]
    assert models.ScrollRequest.model_validate(body)


def test_a_write_that_the_server_has_not_applied_in_time_is_none(line: Line, points: ServerPoints) -> None:
    for status in ("acknowledged", "wait_timeout"):
        line.answers = [(200, [{"operation_id": 1, "status": status}])]
        with pytest.raises(Unavailable, match="not applied"):
            points.upsert("docs", [POINT], [100])


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Refused), (413, Refused), (422, Refused), (401, Misconfigured), (403, Misconfigured), (404, Misconfigured)]
    + [(code, Unavailable) for code in (408, 429, 502, 503, 504, 507)]
    + [(500, Misconfigured)],
)
def test_answers_are_told_apart_by_what_happens_next(line: Line, points: ServerPoints, status: int, kind: Any) -> None:
    line.answers = [(status, None)]
    with pytest.raises(kind) as failed:
        points.upsert("docs", [POINT], [100])
    assert str(status) in str(failed.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Misconfigured), (413, Misconfigured), (422, Misconfigured), (500, Misconfigured), (503, Unavailable)],
)
def test_a_read_that_is_refused_blames_no_row_and_says_what_and_where(
    line: Line, points: ServerPoints, status: int, kind: Any
) -> None:
    reads: list[Callable[[], Any]] = [
        lambda: points.spec("docs"),
        lambda: points.retrieve("docs", [7], vectors=False),
        lambda: points.page("docs", Which(), None, vectors=True),
        lambda: points.newest("docs"),
    ]
    for read in reads:
        line.answers = [(status, None)]
        with pytest.raises(kind, match=rf"Qdrant at qdrant:6333 .*HTTP {status}") as failed:
            read()
        assert failed.value.remedy
        assert failed.value.code == ("SL-QDRANT-READ" if status in (400, 413, 422) else kind.code)
    line.answers = [(status, None)]
    with pytest.raises(Refused if status in (400, 413, 422) else kind):
        points.search("docs", "none", [0.5], 1, {})


def test_a_store_and_a_copy_of_a_server_that_refuses_reads_say_so_in_the_words_of_the_contract(
    line: Line, points: ServerPoints
) -> None:
    class Connected(QdrantStore):
        def _connect(self) -> ServerPoints:
            return points

    store = Connected(QdrantConfig(url="http://qdrant:6333"), "vectors")
    copy = QdrantCopy.__new__(QdrantCopy)
    copy._points = points
    store._points_ = points
    keys = pa.RecordBatch.from_pydict({"id": pa.array([1], pa.int64())})
    reads: list[Callable[[], Any]] = [
        lambda: store.fetch(ITEM, keys),
        lambda: list(store.scan(ITEM)),
        lambda: list(copy.scan(ITEM)),
        lambda: copy.cursor("orders"),
        lambda: copy.buried(ITEM, 0),
        lambda: copy.swept(ITEM.qualified),
    ]
    for read in reads:
        line.answers = [(400, None)]
        with pytest.raises(Misconfigured) as failed:
            read()
        assert failed.value.code == "SL-QDRANT-READ"


def test_a_server_that_is_not_there_is_tried_again_and_no_message_tells_values_or_keys() -> None:
    with pytest.raises(ValidationError) as refused:
        QdrantConfig.model_validate({"url": "http://user:hunter2@127.0.0.1:1/"})
    assert "hunter2" not in str(refused.value)
    away = QdrantConfig.model_validate({"url": "http://127.0.0.1:1/", "api_key": "s3cret", "timeout_s": 1})
    with pytest.raises(Unavailable) as failed:
        ServerPoints.connect(away)
    told = str(failed.value) + repr(away)
    assert "127.0.0.1:1" in told
    assert "s3cret" not in told
    quoting = UnexpectedResponse(400, "Bad Request", b'{"error": "value 5555 is bad"}', httpx.Headers())
    assert "5555" not in str(translate(quoting, "qdrant"))
    reset = ResponseHandlingException(httpx.ReadError("reset while reading 5555"))
    assert isinstance(translate(reset, "qdrant"), Unavailable)
    assert "5555" not in str(translate(reset, "qdrant"))


def test_errors_of_grpc_are_told_apart_alike() -> None:
    class Failed(grpc.RpcError):
        def __init__(self, code: grpc.StatusCode) -> None:
            self._code = code

        def code(self) -> grpc.StatusCode:
            return self._code

    kinds = {
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,
        grpc.StatusCode.INVALID_ARGUMENT: Refused,
        grpc.StatusCode.UNAUTHENTICATED: Misconfigured,
        grpc.StatusCode.NOT_FOUND: Misconfigured,
        grpc.StatusCode.INTERNAL: Misconfigured,
    }
    assert {code: type(translate(Failed(code), "qdrant")) for code in kinds} == kinds


@pytest.mark.parametrize(
    ("version", "fine"), [("1.15.5", False), ("1.16.0", True), ("1.20.1-dev", True), ("2.0", True)]
)
def test_a_server_without_conditional_updates_is_refused(
    line: Line, points: ServerPoints, version: str, fine: bool
) -> None:
    line.answers = [(200, None)]

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"title": "qdrant", "version": version})

    client = QdrantClient(url="http://qdrant", check_compatibility=False, transport=httpx.MockTransport(answer))
    server = ServerPoints(client, "qdrant")
    if fine:
        server.check_version()
    else:
        with pytest.raises(Misconfigured, match=r"came with 1\.16"):
            server.check_version()
    server.close()
