"""/predict in all its forms, against a fake inference process that speaks the real protocol but has no network."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event

from app.errors import Overloaded
from app.models.registry_cache import ModelRegistryCache
from app.predictions import frames
from app.predictions.gateway import Gateway
from app.settings import Settings
from tests import frame_reader
from tests.app.conftest import Client, FakeWorker, jpeg
from tests.servers import eventually, free_port

PNG = b"\x89PNG\r\n\x1a\n rendered"
IMAGE = {"Content-Type": "image/jpeg"}


class FakeInference:
    """The protocol side of an inference process: frames in, frames out, on its own thread and loop."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[dict[str, Any]] = []
        self.refuse: dict[str, Any] | None = None
        self.mute = False
        self.drop_connections = 0
        self._loop = asyncio.new_event_loop()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        if not self._thread.is_alive():
            self._thread.start()
        self._do(self._listen())

    def stop(self) -> None:
        self._do(self._close())

    def end(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=frames.HEADER_BYTES)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            async for frame in frame_reader.read(reader):
                self.requests.append(frame.header)
                if self.drop_connections:
                    self.drop_connections -= 1
                    writer.transport.abort()
                    return
                if not self.mute:
                    writer.writelines(self._reply(frame))
        except OSError:
            return

    def _reply(self, frame: frames.Frame) -> list[bytes]:
        header = {"id": frame.header["id"]}
        if self.refuse:
            return frames.encode(header | {"error": self.refuse})
        results = [self._result(part) for part in frame.parts]
        pictures = [PNG] if frame.header["render"] else []
        timing = {"queue": 0.0, "decode": 0.0, "model": 0.0}
        parts = [0] if pictures else [None] * len(results)
        return frames.encode(header | {"results": results, "parts": parts, "timing_seconds": timing}, pictures)

    @staticmethod
    def _result(data: bytes) -> dict[str, Any]:
        if b"broken" in data:
            return {"error": {"code": "damaged_image", "status": 422, "title": "Unreadable", "detail": "Cut off."}}
        image = {"width": 40, "height": 30, "sha256": hashlib.sha256(data).hexdigest()}
        mask: dict[str, Any] = {
            "space": "image_pixels",
            "gaussian": {"cx": 1.0, "cy": 2.0, "sigma_x": 3.0, "sigma_y": 4.0},
        }
        mask |= {"bbox": [0.0, 0.0, 2.0, 2.0], "threshold": 0.5, "area_fraction": 0.1}
        scored = {"label": "cat", "class_id": 0, "score": 0.9}
        return {"image": image, "label": "cat", "score": 0.9, "abstained": False, "top_k": [scored], "mask": mask}


@pytest.fixture
def inference() -> Iterator[FakeInference]:
    fake = FakeInference(free_port())
    fake.start()
    yield fake
    fake.end()


@pytest.fixture
def settings(settings: Settings, inference: FakeInference) -> Settings:
    return settings.model_copy(update={"inference_addresses": f"tcp://127.0.0.1:{inference.port}"})


@pytest.fixture
def model_id(submit: Callable[..., Any], fake_worker: FakeWorker) -> str:
    submit()
    return str(fake_worker.publish(fake_worker.claim()))


def test_a_reference_is_answered_and_cached_by_its_etag(
    client: Client, dataset_id: str, model_id: str, inference: FakeInference
) -> None:
    by_index = client.get(f"/predict?image=dataset:{dataset_id}/0")
    body = by_index.json()
    assert (by_index.status_code, body["model"]["id"], body["model"]["alias"]) == (200, model_id, "default")
    assert body["predictions"][0]["input_id"] == "0"
    assert body["predictions"][0]["label"] == "cat"
    path = client.get(f"/datasets/{dataset_id}/images").json()["items"][0]["path"]
    by_path = client.get("/predict", params={"image": f"dataset:{dataset_id}/{path}"})
    assert by_path.headers["etag"] == by_index.headers["etag"]
    count = len(inference.requests)
    cached = client.get(f"/predict?image=dataset:{dataset_id}/0", headers={"If-None-Match": by_index.headers["etag"]})
    assert (cached.status_code, len(inference.requests)) == (304, count)
    other = client.get(f"/predict?image=dataset:{dataset_id}/0&top_k=1")
    assert other.headers["etag"] != by_index.headers["etag"]
    assert client.head(f"/predict?image=dataset:{dataset_id}/0").headers["etag"] == by_index.headers["etag"]


BODIES: dict[str, dict[str, Any]] = {
    "picture": {"content": jpeg((1, 2, 3)), "headers": IMAGE},
    "form": {"files": [("file", ("a.jpg", jpeg((1, 2, 3)), "image/jpeg"))]},
    "form of two, one broken": {
        "files": [("file", ("a", jpeg((1, 2, 3)))), ("file", ("b", jpeg((1, 2, 3)) + b"broken"))]
    },
    "form with options": {"files": [("file", ("a.jpg", jpeg((1, 2, 3))))], "data": {"top_k": "1"}},
    "form with an unknown field": {"files": [("file", ("a.jpg", b"x"))], "data": {"topk": "1"}},
    "json": {"json": {"inputs": [{"image": {"type": "base64", "value": base64.b64encode(jpeg((1, 2, 3))).decode()}}]}},
    "json that is none": {"content": b"{", "headers": {"Content-Type": "application/json"}},
    "broken picture": {"content": jpeg((1, 2, 3)) + b"broken", "headers": IMAGE},
    "no picture": {"content": b"plain text", "headers": IMAGE},
    "nothing": {"content": b"", "headers": IMAGE},
    "another type": {"content": b"a,b", "headers": {"Content-Type": "text/csv"}},
    "too large": {"content": b"\xff\xd8\xff" + bytes(17 << 20), "headers": IMAGE},
    "a host that is not ours": {"content": jpeg((1, 2, 3)), "headers": {**IMAGE, "Host": "elsewhere.example"}},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_query_string_parsed_before_gets_the_same_answer(
    client: Client, model_id: str, inference: FakeInference, body: dict[str, Any]
) -> None:
    """The route caches parsed query strings (docs/decisions/0007)."""
    query = "/predict?top_k=3&masks=gaussian&mask_threshold=0.4"
    answers = []
    for _ in range(2):
        answer = client.post(query, **body)
        document = answer.json()
        for varying in ("timing_seconds", "request_id"):
            document.pop(varying, None)
        answers.append((answer.status_code, set(answer.headers), answer.headers["content-type"], document))
        assert client.post(query, content=jpeg((9, 9, 9)), headers=IMAGE).status_code == 200
    assert answers[0] == answers[1]


@pytest.mark.parametrize("query", ["topk=1", "top_k=0", "masks=blob", "format=gif", "model=%00", "threshold="])
def test_GET_and_POST_refuse_a_query_alike_and_every_time(client: Client, query: str) -> None:
    uri = "data:image/gif;base64,R0lGODlh"
    answers = [client.get(f"/predict?image={uri}&{query}")]
    answers += [client.post(f"/predict?{query}", content=jpeg((1, 1, 1)), headers=IMAGE) for _ in range(2)]
    problems = [{**answer.json(), "request_id": ""} for answer in answers]
    assert problems[0]["status"] == 422
    assert problems[0] == problems[1] == problems[2]


def test_GET_and_POST_document_the_same_parameters(client: Client) -> None:
    operations = client.get("/openapi.json").json()["paths"]["/predict"]
    get, post = ({p["name"]: p for p in operations[method]["parameters"]} for method in ("get", "post"))
    assert get.pop("image")["required"]
    assert get == post
    assert post["top_k"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 5, "title": "Top K"}


def test_a_revoked_key_is_refused_although_its_query_is_cached(with_settings: Callable[..., Client]) -> None:
    client = with_settings(admin_key="x" * 32)
    admin = {"Authorization": "Bearer " + "x" * 32}
    key = client.post("/keys", json={"name": "k", "scopes": ["predict"]}, headers=admin).json()
    headers = {**IMAGE, "Authorization": f"Bearer {key['key']}"}
    assert client.post("/predict?model=none", content=jpeg((1, 1, 1)), headers=headers).status_code == 404
    assert client.delete(f"/keys/{key['id']}", headers=admin).status_code == 204
    assert client.post("/predict?model=none", content=jpeg((1, 1, 1)), headers=headers).status_code == 401


@pytest.mark.parametrize("url", ["https://x/y.png", "HTTP://x", "file:///etc/passwd", "ftp://x", "s3://b/k"])
def test_SEC2_nothing_is_ever_fetched_by_url(client: Client, url: str) -> None:
    answer = client.get("/predict", params={"image": url})
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/remote-images-disabled")


@pytest.mark.parametrize(
    "reference",
    ["", "dataset:", "dataset:x/1", "dataset:../../etc/1", "cat.jpg", "data:image/png,abc", "data:text/html;base64,x"],
)
def test_a_reference_that_is_none_is_a_422(client: Client, model_id: str, reference: str) -> None:
    answer = client.get("/predict", params={"image": reference})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/query/image/0"


def test_a_data_uri_is_answered(client: Client, model_id: str) -> None:
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg((1, 2, 3))).decode()
    assert client.get("/predict", params={"image": [uri, uri]}).json()["predictions"][1]["input_id"] == "1"


def test_raw_multipart_and_json_bodies_get_the_same_answer(
    client: Client, model_id: str, dataset_id: str, inference: FakeInference
) -> None:
    data = jpeg((200, 0, 10))
    raw = client.post("/predict?masks=gaussian,rle&top_k=2", content=data, headers=IMAGE)
    fields = {"masks": "gaussian,rle", "top_k": "2"}
    parts = client.post("/predict", files=[("file", ("a.jpg", data))], data=fields)
    inputs = [{"id": "mine", "image": {"type": "base64", "value": base64.b64encode(data).decode()}}]
    request_body = {"inputs": inputs, "masks": ["gaussian", "rle"], "top_k": 2}
    body = client.post("/predict", json=request_body)
    answers = [answer.json()["predictions"][0] for answer in (raw, parts, body)]
    assert [answer.pop("input_id") for answer in answers] == ["0", "0", "mine"]
    assert answers[0] == answers[1] == answers[2]
    first, *others = (options | {"id": "", "request_id": ""} for options in inference.requests[-3:])
    assert others == [first, first]
    stored = [{"image": {"type": "dataset", "value": f"{dataset_id}/0"}}]
    assert client.post("/predict", json={"inputs": stored}).status_code == 200


def test_a_bad_image_never_harms_its_neighbours(client: Client, model_id: str) -> None:
    good, broken = jpeg((9, 9, 9)), b"\xff\xd8\xff broken"
    pictures = [("file", (str(n), data)) for n, data in enumerate([good, b"", b"text", broken, good])]
    body = client.post("/predict", files=pictures).json()["predictions"]
    assert [one["input_id"] for one in body] == ["0", "1", "2", "3", "4"]
    assert [one.get("label") for one in body] == ["cat", None, None, None, "cat"]
    assert [one["error"]["status"] for one in body if "error" in one] == [422, 415, 422]


def test_when_no_image_works_the_answer_is_a_422_that_names_each(client: Client, model_id: str) -> None:
    answer = client.post("/predict", files=[("file", ("a", b"text")), ("file", ("b", b"\xff\xd8\xff broken"))])
    assert answer.status_code == 422
    codes = {fault["code"] for fault in answer.json()["errors"]}
    assert codes == {"unsupported_image_format", "damaged_image"}


def test_a_picture_is_rendered_where_one_is_accepted(
    client: Client, model_id: str, inference: FakeInference, dataset_id: str
) -> None:
    url = f"/predict?image=dataset:{dataset_id}/0"
    for answer in (client.get(url, headers={"Accept": "image/png"}), client.get(f"{url}&format=overlay")):
        assert (answer.headers["content-type"], answer.content) == ("image/png", PNG)
        assert inference.requests[-1]["render"] == "overlay"
    assert client.get(f"{url}&format=mask").content == PNG
    assert inference.requests[-1]["render"] == "mask"
    assert client.get(f"{url}&image=dataset:{dataset_id}/1&format=mask").status_code == 422


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "image/png"),  # <img> in Chromium
        ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", "image/png"),  # <img> in Firefox
        ("text/html,application/xhtml+xml,image/avif,image/webp,image/apng,*/*;q=0.8", "application/json"),  # a page
        ("application/json, image/png;q=0.5", "application/json"),
        ("*/*", "application/json"),
    ],
)
def test_an_img_element_gets_a_picture_and_a_program_gets_json(
    client: Client, model_id: str, dataset_id: str, accept: str, kind: str
) -> None:
    answer = client.get(f"/predict?image=dataset:{dataset_id}/0", headers={"Accept": accept})
    assert answer.headers["content-type"] == kind


def test_fields_of_a_json_body_replace_the_query_s_and_no_others(
    client: Client, model_id: str, inference: FakeInference
) -> None:
    picture = {"type": "base64", "value": base64.b64encode(jpeg((9, 9, 9))).decode()}
    answer = client.post("/predict?top_k=3&mask_threshold=0.25", json={"inputs": [{"image": picture}], "top_k": 2})
    assert (answer.status_code, inference.requests[-1]["top_k"], inference.requests[-1]["mask_threshold"]) == (
        200,
        2,
        0.25,
    )
    unknown = client.post("/predict?model=nobody", json={"inputs": [{"image": picture}]})
    assert unknown.status_code == 404


@pytest.mark.parametrize("form", ["query", "multipart", "json"])
def test_more_than_32_images_are_a_413_that_names_the_batch_job(client: Client, form: str) -> None:
    uri = "data:image/gif;base64,R0lGODlh"
    if form == "query":
        answer = client.get("/predict", params={"image": [uri] * 33})
    elif form == "multipart":
        answer = client.post("/predict", files=[("file", (str(n), b"GIF89a")) for n in range(33)])
    else:
        inputs = [{"image": {"type": "base64", "value": "R0lG"}}] * 33
        answer = client.post("/predict", json={"inputs": inputs})
    assert answer.status_code == 413
    assert "predict" in answer.json()["detail"]


def test_PRED4_an_image_over_its_limit_is_a_413(client: Client, model_id: str) -> None:
    big = b"\xff\xd8\xff" + bytes(16 << 20)
    assert client.post("/predict", content=big, headers=IMAGE).status_code == 413
    assert client.post("/predict", files={"file": ("a", big)}).status_code == 413


@pytest.mark.parametrize(
    "query",
    ["top_k=0", "top_k=x", "threshold=2", "threshold=nan", "masks=blob", "mask_threshold=0", "format=gif", "model="],
)
def test_PRED2_bad_parameters_are_a_422(client: Client, query: str) -> None:
    assert client.post(f"/predict?{query}", content=jpeg((1, 1, 1)), headers=IMAGE).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": []},
        {"inputs": [{"image": {"type": "url", "value": "https://x"}}]},
        {"inputs": [{"image": {"type": "base64", "value": 3}}]},
        {"inputs": [{"img": 1}]},
        {"inputs": [{"image": {"type": "base64", "value": "R0lG"}}], "top_k": True},
    ],
)
def test_PRED1_a_json_body_that_is_wrong_is_a_422(client: Client, body: object) -> None:
    assert client.post("/predict", json=body).status_code == 422


def test_PRED1_bodies_that_are_no_picture_are_refused(client: Client, model_id: str) -> None:
    assert client.post("/predict", content=b"x", headers={"Content-Type": "application/zip"}).status_code == 415
    assert client.post("/predict", content=b"", headers=IMAGE).status_code == 422
    assert client.post("/predict", files={"fil": ("a", b"x")}).status_code == 422
    assert client.post("/predict", files={"file": ("a", jpeg((1, 1, 1)))}, data={"topk": "1"}).status_code == 422


def test_PRED2_PRED3_unknown_models_are_404_and_unfinished_jobs_409(client: Client, submit: Callable[..., Any]) -> None:
    job = submit()
    uri = "data:image/gif;base64,R0lGODlh"
    for model, status in (("nobody", 404), ("00000000-0000-4000-8000-000000000000", 404), (job["id"], 409)):
        assert client.get("/predict", params={"image": uri, "model": model}).status_code == status
    assert client.get("/predict", params={"image": uri}).json()["type"] == "/problems/model-not-found"


def test_an_alias_that_moves_is_followed(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker, model_id: str
) -> None:
    data = jpeg((5, 5, 5))
    submit()
    newer = str(fake_worker.publish(fake_worker.claim()))
    client.put("/aliases/champion", json={"model_id": model_id})
    assert client.post("/predict?model=champion", content=data, headers=IMAGE).json()["model"]["id"] == model_id
    client.put("/aliases/champion", json={"model_id": newer})
    assert client.post("/predict?model=champion", content=data, headers=IMAGE).json()["model"]["id"] == newer


def test_predictions_of_a_known_model_outlive_the_database(client: Client, dataset_id: str, model_id: str) -> None:
    """Law 8, for an id and for the alias `default`."""
    engine = client.app.state.engine  # type: ignore[attr-defined]
    client.app.state.model_registry = ModelRegistryCache(engine, alias_ttl_s=0.0)  # type: ignore[attr-defined]
    urls = [f"/predict?image=dataset:{dataset_id}/0", f"/predict?image=dataset:{dataset_id}/0&model={model_id}"]
    for url in urls:
        assert client.get(url).status_code == 200

    def away(*_: object) -> None:
        raise sqlite3.OperationalError("the database is unavailable")

    engine.dispose()
    event.listen(engine, "do_connect", away)
    for url in urls:
        assert client.get(url).status_code == 200
    assert client.get("/jobs").status_code == 503
    assert client.get("/livez").status_code == 200
    event.remove(engine, "do_connect", away)


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        ({"code": "overloaded", "status": 429, "title": "t", "detail": "d", "retry_after_s": 3}, 429),
        ({"code": "model_unavailable", "status": 503, "title": "t", "detail": "d"}, 503),
        ({"code": "deadline_exceeded", "status": 504, "title": "t", "detail": "d"}, 504),
        ({"code": "odd", "status": 418, "title": "t", "detail": "d"}, 503),
    ],
)
def test_F25_what_the_process_refuses_is_a_problem_with_retry_after(
    client: Client, model_id: str, inference: FakeInference, refusal: dict[str, Any], status: int
) -> None:
    inference.refuse = refusal
    answer = client.post("/predict", content=jpeg((1, 1, 1)), headers=IMAGE)
    assert answer.status_code == status
    assert answer.headers["retry-after"]


def test_an_answer_that_does_not_come_in_time_is_a_504(
    with_settings: Callable[..., Client], model_id: str, inference: FakeInference
) -> None:
    inference.mute = True
    client = with_settings(predict_deadline_s=0.2)
    answer = client.post("/predict", content=jpeg((1, 1, 1)), headers=IMAGE)
    assert (answer.status_code, answer.json()["type"]) == (504, "/problems/deadline-exceeded")


def test_an_inference_process_that_comes_back_is_found_again(
    client: Client, model_id: str, inference: FakeInference
) -> None:
    def predict() -> int:
        return int(client.post("/predict", content=jpeg((1, 1, 1)), headers=IMAGE).status_code)

    assert predict() == 200
    inference.stop()
    assert predict() == 503
    inference.start()
    assert eventually(lambda: predict() == 200, seconds=10)


def test_a_connection_that_breaks_under_a_request_costs_nothing(
    client: Client, model_id: str, inference: FakeInference
) -> None:
    inference.drop_connections = 1
    assert client.post("/predict", content=jpeg((1, 1, 1)), headers=IMAGE).status_code == 200


def test_F26_fifty_predictions_at_once_are_all_answered(client: Client, model_id: str) -> None:
    def predict(n: int) -> Any:
        return client.post("/predict", content=jpeg((n, n, n)), headers=IMAGE)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(predict, range(50)))
    assert {answer.status_code for answer in answers} == {200}
    expected = [hashlib.sha256(jpeg((n, n, n))).hexdigest() for n in range(50)]
    assert [answer.json()["predictions"][0]["image"]["sha256"] for answer in answers] == expected


def test_the_least_busy_process_is_asked_and_a_full_one_says_so(inference: FakeInference) -> None:
    other = FakeInference(free_port())
    other.start()

    async def scenario() -> None:
        addresses = f"tcp://127.0.0.1:{inference.port},tcp://127.0.0.1:{other.port}"
        gateway = Gateway(addresses, connect_timeout_s=1, deadline_s=5, max_in_flight=4)
        inference.mute = other.mute = True
        header = {"render": None}
        waiting = [asyncio.create_task(gateway.send(header, [b"x"])) for _ in range(4)]
        await asyncio.to_thread(eventually, lambda: len(inference.requests) + len(other.requests) == 4)
        assert (len(inference.requests), len(other.requests)) == (2, 2)
        with pytest.raises(Overloaded):
            await gateway.send(header, [b"x"])
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        gateway.close()

    asyncio.run(scenario())
    other.end()
