"""Representations of networks and of installed weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.catalog import Catalog
from app.networks import service
from ml.formats.weights_folder import WeightsRecord

Triple = tuple[float, float, float]


class WeightsOut(BaseModel):
    """Pretrained weights that are installed."""

    name: str = Field(description="What a job names as its `network`, with `pretrained: true`")
    network: str = Field(description="The architecture: the name without its tag")
    source: str
    licence: str = Field(description="Licence of the weights, as their source states it")
    mean: Triple = Field(
        description="Mean of each channel in [0, 1], by which a job with these weights normalises images"
    )
    std: Triple = Field(description="Standard deviation of each channel")
    image_size: int = Field(description="Side in pixels of the images that they were trained with")
    resize: Literal["crop", "squash"] = Field(description="How those images were made square")
    parameters: int = Field(description="Parameters of the network with ten classes")
    digest: str = Field(description="SHA-256 of the file", examples=["sha256:..."])
    size_bytes: int


class PublishedWeights(BaseModel):
    """Weights that somebody publishes for a network."""

    source: str
    licence: str
    image_size: int


class NetworkOut(BaseModel):
    """A network that a job can name."""

    name: str
    summary: str
    parameters: int = Field(description="Parameters with ten classes")
    flops_per_image: int | None = Field(
        description="Operations of one forward pass at 32 px; null if it cannot read such images"
    )
    min_image_size: int | None = Field(description="The smallest of 32, 64 and 224 px that it reads; null if unknown")
    weights: WeightsOut | None = Field(description="Its installed weights; with them it takes `pretrained: true`")
    published: PublishedWeights | None = Field(description="Weights that can be installed; null if there are none")
    add_weights: str | None = Field(description="The command that installs them; null where they are installed")


def weights_out(record: WeightsRecord) -> WeightsOut:
    """The representation of installed weights."""
    fields = {**record.as_json(), "digest": f"sha256:{record.digest}", "size_bytes": record.size}
    return WeightsOut.model_validate(fields)


def network_list(catalog: Catalog, installed: Mapping[str, WeightsRecord]) -> list[NetworkOut]:
    """Every network of the catalog in its order, then those that only their installed weights (by name) make known."""
    records = dict(installed)
    listed = [_of_catalog(catalog, entry, records.pop(name, None)) for name, entry in catalog.networks.items()]
    return listed + [_of_record(catalog, record) for record in records.values()]


def _of_catalog(catalog: Catalog, entry: dict[str, Any], record: WeightsRecord | None) -> NetworkOut:
    published = entry.get("pretrained")
    return NetworkOut(
        name=entry["name"],
        summary=entry["summary"],
        parameters=entry["parameters"],
        flops_per_image=entry["flops_per_image"],
        min_image_size=entry.get("min_image_size"),
        weights=weights_out(record) if record else None,
        published=published,
        add_weights=service.add_command(catalog, entry["name"]) if published and not record else None,
    )


def _of_record(catalog: Catalog, record: WeightsRecord) -> NetworkOut:
    entry = catalog.networks.get(record.network, {})
    return NetworkOut(
        name=record.name,
        summary=f"{record.network} with weights of its own: {record.source}.",
        parameters=record.parameters,
        flops_per_image=entry.get("flops_per_image"),
        min_image_size=entry.get("min_image_size"),
        weights=weights_out(record),
        published=None,
        add_weights=None,
    )
