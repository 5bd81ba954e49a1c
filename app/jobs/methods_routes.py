"""GET /methods: methods, networks and noises of the catalog."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from app.catalog import Catalog
from app.errors import NotFound
from app.http import pages
from app.http.access import READ
from app.http.deps import TrainingCatalog
from app.http.pages import Paging
from app.http.routing import Router

router = Router(tags=["methods"])


class Rule(BaseModel):
    """A preset that is chosen where a fact of the data set is below a bound."""

    preset: str
    fact: str = Field(description="Name of one of the `facts` of a data set")
    below: float


class Method(BaseModel):
    name: str
    title: str
    paper: str
    idea: str
    relative_cost: float = Field(description="Cost of an epoch; plain cross-entropy is 1")
    mixes: bool = Field(description="Whether it mixes images itself, so that `mixup` must be 0")
    needs: list[str] = Field(description="What the method must know, such as the noise rate")
    presets: dict[str, dict[str, Any]] = Field(description="Named settings")
    training: dict[str, dict[str, Any]] = Field(
        description="Fields of a training that go with presets, by a glob of their names; the first that matches "
        "counts. They are those of the method's paper, or what the preset `photographs` was measured with"
    )
    rules: list[Rule] = Field(
        description="For a job without `params`: the first rule that holds chooses the preset; else the defaults"
    )
    defaults: dict[str, Any]
    json_schema: dict[str, Any] = Field(serialization_alias="schema", description="JSON Schema of `params`")


class Methods(BaseModel):
    items: list[Method]
    next_cursor: str | None
    spec: dict[str, Any] = Field(description="JSON Schema of the fields every training has")
    networks: list[dict[str, Any]]
    noises: list[dict[str, Any]]


def describe_method(catalog: Catalog, name: str) -> Method:
    entry = catalog.methods[name]
    properties = entry["params"].get("properties", {})
    return Method(
        name=name,
        title=entry["title"],
        paper=entry["paper"],
        idea=entry["idea"],
        relative_cost=entry["relative_cost"],
        mixes=entry.get("mixes", False),
        needs=entry["needs"],
        presets=entry["presets"],
        training=entry.get("training", {}),
        rules=entry.get("rules", []),
        defaults={field: schema["default"] for field, schema in properties.items() if "default" in schema},
        json_schema=entry["params"],
    )


@router.get("/methods", dependencies=[READ], response_model=Methods)
async def list_(catalog: TrainingCatalog, paging: Paging) -> Methods:
    """Every method, and what all trainings share: fields, networks, noises."""
    names, cursor = pages.slice_page(list(catalog.methods), paging)
    return Methods(
        items=[describe_method(catalog, name) for name in names],
        next_cursor=cursor,
        spec=catalog.spec,
        networks=list(catalog.networks.values()),
        noises=catalog.noises,
    )


@router.get("/methods/{name}", dependencies=[READ], response_model=Method)
async def get(catalog: TrainingCatalog, name: str) -> Method:
    """One method."""
    if name not in catalog.methods:
        raise NotFound(f"There is no such method; known: {', '.join(catalog.methods)}.")
    return describe_method(catalog, name)
