"""The filters, order and pages that lists of images have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Query
from pydantic import Field

from app.datasets.label_issues import ImageAction
from app.errors import Fault, InvalidRequest
from app.http import pages
from app.http.fields import VersionNumber
from app.http.pages import PageParams
from ml.formats import dataset_index, image_query, image_results
from ml.formats.image_query import ImageMatch, ImageQuery, Order
from ml.formats.records import Split

LabelVersionQuery = Annotated[VersionNumber | None, Query(description="Version of the labels; by default the newest")]
ClassName = Annotated[str | None, Query(max_length=200, description="Name of a class")]


class ImageFilters(NamedTuple):
    """The query parameters of every list of images."""

    indices: list[int] | None
    split: Split | None
    label: str | None
    predicted: str | None
    model: str | None
    is_label_issue: bool | None
    score_below: float | None
    score_from: float | None
    action: list[ImageAction] | None
    is_outlier: bool | None
    is_near_duplicate: bool | None
    q: str | None
    like: int | None
    order_by: Order | None

    def query(self, *, default_order: Order, judged: bool = False) -> ImageQuery:
        """What is asked for.

        Args:
            default_order: Where neither `order_by` nor `like` says more.
            judged: Whether `label` means the label that the job has judged, and not that of the version.

        Raises:
            InvalidRequest: An order by similarity to nothing.
        """
        if self.order_by == "similarity" and self.like is None:
            detail = "An order by similarity needs `like`, the index of an image."
            raise InvalidRequest(detail, errors=[Fault("/query/like", "missing", detail)])
        return ImageQuery(
            numbers=self.indices,
            split=self.split,
            label=None if judged else self.label,
            judged_label=self.label if judged else None,
            status=self.action,
            text=self.q,
            predicted=self.predicted,
            model=self.model,
            is_label_issue=self.is_label_issue,
            score_below=self.score_below,
            score_from=self.score_from,
            is_outlier=self.is_outlier,
            is_near_duplicate=self.is_near_duplicate,
            like=self.like,
            order=self.order_by or (default_order if self.like is None else "similarity"),
        )


def _filters(
    index: Annotated[
        list[Annotated[int, Field(ge=0, le=2**53)]] | None,
        Query(max_length=pages.MOST_ITEMS, description="Only these; repeat it for several"),
    ] = None,
    split: Split | None = None,
    label: ClassName = None,
    predicted: Annotated[str | None, Query(max_length=200, description="The class that a job suggests")] = None,
    model: Annotated[str | None, Query(max_length=200, description="The class that a job's model predicts")] = None,
    is_label_issue: Annotated[bool | None, Query(description="Flagged by a job, or not")] = None,
    score_below: Annotated[float | None, Query(ge=0, le=1, description="Only lower label scores")] = None,
    score_from: Annotated[float | None, Query(ge=0, le=1, description="Only this label score or higher ones")] = None,
    action: Annotated[list[ImageAction] | None, Query(description="Only these; repeat it for several")] = None,
    is_outlier: Annotated[bool | None, Query(description="Far from all other images, or not")] = None,
    is_near_duplicate: Annotated[bool | None, Query(description="Another image looks the same, or none does")] = None,
    q: Annotated[str | None, Query(min_length=1, max_length=200, description="Text in the path")] = None,
    like: Annotated[int | None, Query(ge=0, le=2**53, description="Only images most similar to this one")] = None,
    order_by: Annotated[Order | None, Query(description="score: the most suspicious first")] = None,
) -> ImageFilters:
    return ImageFilters(
        index, split, label, predicted, model, is_label_issue, score_below, score_from, action, is_outlier,
        is_near_duplicate, q, like, order_by,
    )  # fmt: skip


Filters = Annotated[ImageFilters, Depends(_filters)]


def check_classes(filters: ImageFilters, labels: list[str], predictions: list[str]) -> None:
    """Refuse names of classes that no image can have.

    Args:
        filters: Of the request.
        labels: The classes of the labels.
        predictions: Those of the job.

    Raises:
        InvalidRequest: There is no such class.
    """
    named = (
        ("label", filters.label, labels),
        ("predicted", filters.predicted, predictions),
        ("model", filters.model, predictions),
    )
    detail = "There is no class of this name."
    faults = [
        Fault(f"/query/{field}", "unknown_class", detail)
        for field, name, classes in named
        if name is not None and name not in classes
    ]
    if faults:
        raise InvalidRequest(detail, errors=faults)


def page(
    folder: Path | None, query: ImageQuery, paging: PageParams, *, version: int, results: Path | None = None
) -> tuple[list[ImageMatch], str | None]:
    """One page of images, and the cursor of the next page; arguments as of `image_query.find`."""
    after = None
    if paging.cursor is not None:
        after = pages.decode(paging.cursor, lambda values: _position(values, query.order))
    matches = image_query.find(folder, query, version=version, results=results, after=after, limit=paging.limit + 1)
    return pages.cut_page(matches, paging, lambda match: [query.order, *match.position])


def _position(values: Any, order: Order) -> list[Any]:
    """The position in a cursor of this order; ValueError or TypeError for others."""
    position: list[Any]
    of_order, *position = values
    numbers = position[1:] if order == "score" else [] if order == "path" else position
    if (
        of_order != order
        or len(position) != (2 if order == "score" else 1)
        or not all(type(number) is int and 0 <= number < 2**53 for number in numbers)
        or (order == "path" and type(position[0]) is not str)
        or (order == "score" and (type(position[0]) not in (int, float) or not 0 <= position[0] <= 1))
    ):
        raise ValueError(values)
    return position


def class_names(folder: Path | None, version: int, results: Path | None) -> tuple[list[str], list[str]]:
    """The classes of the labels and those of the job; an absent one has the other's."""
    of_job = [] if results is None else image_results.read_classes(results)
    return (of_job if folder is None else dataset_index.read_classes(folder, version)), of_job
