"""The OpenAPI document: complete, consistent, and true (that it is true, every other test here checks too)."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

from tests.app.conftest import Client


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*(references(inner) for inner in value))
    return set()


def test_every_reference_leads_somewhere(client: Client) -> None:
    document = client.get("/openapi.json").json()
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known


def test_every_problem_is_documented_in_its_own_media_type(client: Client) -> None:
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in json.dumps(document)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (method, path, status)


def test_every_route_of_the_contract_is_there(client: Client) -> None:
    paths = {
        (path, method)
        for path, operations in client.get("/openapi.json").json()["paths"].items()
        for method in operations
    }
    expected = """
    /uploads post options | /uploads/{upload_id} get patch delete
    /datasets get post | /datasets/{dataset_id} get delete | /datasets/{dataset_id}/report get
    /datasets/{dataset_id}/images get | /datasets/{dataset_id}/images/{index} get
    /datasets/{dataset_id}/images/{index}/thumbnail get | /datasets/{dataset_id}/labels get
    /methods get | /methods/{name} get | /jobs get post | /jobs/{job_id} get patch delete
    /jobs/{job_id}/cancel post | /jobs/{job_id}/retry post | /jobs/{job_id}/events get
    /jobs/{job_id}/metrics get | /jobs/{job_id}/logs get | /jobs/{job_id}/label-issues get
    /jobs/{job_id}/artifacts get | /jobs/{job_id}/artifacts/{name} get
    /models get | /models/{model_id} get delete | /models/{model_id}/export get
    /aliases get | /aliases/{alias} get put delete
    /predict get post | /keys get post | /keys/{key_id} get delete | /livez get | /readyz get | /metrics get
    """
    routes = set()
    for entry in expected.replace("\n", "|").split("|"):
        path, *methods = entry.split() or [""]
        routes |= {(path, method) for method in methods}
    assert routes <= paths


def test_J9_every_collection_is_paged(client: Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    paged = set()
    for path, operations in document["paths"].items():
        answer = operations.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        name = answer.get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
        if "items" in schemas.get(name, {}).get("properties", {}):
            assert "next_cursor" in schemas[name]["required"], path
            names = {parameter["name"]: parameter["schema"] for parameter in operations["get"]["parameters"]}
            assert names["limit"]["maximum"] == 200, path
            assert "cursor" in names, path
            paged.add(path)
    assert {"/methods", "/aliases", "/jobs", "/datasets/{dataset_id}/labels", "/jobs/{job_id}/artifacts"} <= paged


def test_components_have_names_a_generated_client_can_bear(client: Client) -> None:
    assert not [name for name in client.get("/openapi.json").json()["components"]["schemas"] if "__" in name]


def test_a_training_request_shows_every_method_s_settings(client: Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert {"TrainingJob", "ScoringJob", "DenllParams", "CeParams"} <= schemas.keys()
    epochs = schemas["TrainingJob"]["properties"]["epochs"]
    assert (epochs["minimum"], epochs["type"]) == (1, "integer")


def test_the_request_body_of_a_job_is_one_of_its_kinds(client: Client) -> None:
    body = client.get("/openapi.json").json()["paths"]["/jobs"]["post"]["requestBody"]
    options = body["content"]["application/json"]["schema"]["oneOf"]
    assert [option["$ref"].rsplit("/", 1)[1] for option in options] == ["TrainingJob", "ScoringJob"]


class Folds(HTMLParser):
    """The table rows of every fold of a page by its summary, each a list of cells; and where links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self._fold, self._is_in_summary = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if tag == "summary":
            self._fold, self._is_in_summary = "", True
        elif tag == "tr":
            self.rows.setdefault(self._fold.strip(), []).append([])
        elif tag == "td":
            self.rows[self._fold.strip()][-1].append("")
        elif tag == "a" and attributes["href"].startswith("#"):
            self.targets.add(attributes["href"][1:])

    def handle_endtag(self, tag: str) -> None:
        if tag == "summary":
            self._is_in_summary = False

    def handle_data(self, data: str) -> None:
        if self._is_in_summary:
            self._fold += data
        elif rows := self.rows.get(self._fold.strip()):
            rows[-1][-1] += data if rows[-1] else ""


def test_the_page_of_the_api_shows_every_field_of_every_body(client: Client) -> None:
    document, page = client.get("/openapi.json").json(), Folds()
    page.feed(client.get("/docs").text)
    schemas = document["components"]["schemas"]
    submit = next(rows for fold, rows in page.rows.items() if fold.startswith("POST /jobs "))
    names = [name for kind in ("TrainingJob", "ScoringJob") for name in schemas[kind]["properties"]]
    assert [cells[0] for cells in submit] == ["dry_run", "idempotency-key", *names]
    fields = {name: (meaning, kind) for name, meaning, kind in page.rows["TrainingJob"]}
    assert fields["dataset_id"] == ("A data set that is ready", "uuid, required")
    assert fields["epochs"][1].startswith("integer ≥ 1 ≤ 2000, default")
    assert "none or last or two or all" in fields["tune"][1]
    for name in ("Patch", "Pin", "PredictRequest", "JobOut", "DenllParams", "Limits"):
        assert [cells[0] for cells in page.rows[name]] == list(schemas[name]["properties"]), name
    assert page.targets <= page.ids, "every link to a type leads to it"
    assert {"TrainingJob", "ScoringJob", "DenllParams", "Limits"} <= page.targets
