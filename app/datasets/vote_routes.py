"""/datasets/{id}/votes and /datasets/{id}/images/{index}/votes: the votes of several annotators.

/datasets/{id}/images/{index} serves the bytes of an image, so its votes have another address.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, Field
from starlette.requests import Request

from app.datasets import contents, label_service, service
from app.datasets.image_filters import LabelVersionQuery
from app.datasets.routes import ImageIndex
from app.errors import ImageNotFound, LabelVersionNotFound, NotReady
from app.http import files as file_responses
from app.http import pages
from app.http.access import READ
from app.http.deps import Files, ReadSession
from app.http.openapi import CSV, problems
from app.http.pages import Page, Paging
from app.http.routing import Router
from ml.formats import dataset_index, votes
from ml.formats.records import ImageRecord, Split
from ml.formats.votes import ImageVotes

router = Router(tags=["votes"])


class Vote(BaseModel):
    annotator: str
    label: str | None = Field(description="null where the annotator has not voted")


class ConsensusLabel(BaseModel):
    label: str
    confidence: float = Field(description="majority: its share of the votes; dawid_skene: its probability")


class VotesOut(BaseModel):
    index: int
    path: str
    split: Split
    given_label: str | None = Field(description="In the requested version of the labels")
    votes: list[Vote] = Field(description="One for each annotator, as uploaded")
    majority: ConsensusLabel | None = Field(
        description="The label with most votes; in a tie, the vote of the annotator whose column was named first. null "
        "without votes"
    )
    dawid_skene: ConsensusLabel | None = Field(description="The most probable label, given how each annotator errs")


@router.get(
    "/datasets/{dataset_id}/votes",
    dependencies=[READ],
    response_model=Page[VotesOut],
    responses={200: CSV, **problems(NotReady, LabelVersionNotFound)},
)
def list_(
    request: Request,
    session: ReadSession,
    files: Files,
    paging: Paging,
    dataset_id: uuid.UUID,
    disagreeing: Annotated[bool | None, Query(description="Only images whose votes differ, or do not")] = None,
    version: LabelVersionQuery = None,
) -> Any:
    """Votes in index order: a page as JSON, or all as CSV with a column for each annotator.

    Images without a vote are left out. `annotators` of the data set tells how often each agrees with the consensus.
    """
    dataset = service.get_ready(session, dataset_id)
    labels = label_service.resolve_version(session, dataset, version)
    folder = files.fetch_dataset(dataset.id, labels)
    index = folder / dataset_index.INDEX_FILE
    annotators = votes.read_annotators(index)
    classes = dataset_index.read_classes(folder, labels)
    if file_responses.wants_csv(request):
        rows = votes.read(index, disagreeing=disagreeing)
        header = ("index", "path", "split", "given_label", *annotators, "majority", "majority_share")
        images = {image.number: image for image in dataset_index.read_images(folder, version=labels)}
        lines = (csv_line(images[row.consensus.image], row, classes) for row in rows)
        header = (*header, "dawid_skene", "dawid_skene_probability")
        return file_responses.csv_table(f"votes-{dataset_id}", header, lines)
    after = pages.page_start(paging, -1)
    rows = votes.read(index, disagreeing=disagreeing, after=after, limit=paging.limit + 1)
    page, cursor = pages.cut_page(rows, paging, lambda row: [row.consensus.image])
    return Page(items=votes_out(folder, labels, classes, annotators, page), next_cursor=cursor)


@router.get(
    "/datasets/{dataset_id}/images/{index}/votes",
    dependencies=[READ],
    response_model=VotesOut,
    responses=problems(NotReady, ImageNotFound, LabelVersionNotFound),
)
def get(
    session: ReadSession, files: Files, dataset_id: uuid.UUID, index: ImageIndex, version: LabelVersionQuery = None
) -> VotesOut:
    """What each annotator says of an image, and what they agree on; `votes` is empty without annotators."""
    dataset = service.get_ready(session, dataset_id)
    labels = label_service.resolve_version(session, dataset, version)
    folder = files.fetch_dataset(dataset.id, labels)
    image = contents.find_image(folder, index, labels)
    path = folder / dataset_index.INDEX_FILE
    rows = votes.read(path, numbers=[index])
    classes = dataset_index.read_classes(folder, labels)
    return image_votes_out(image, classes, votes.read_annotators(path), rows[0] if rows else None)


def votes_out(
    folder: Path, version: int, classes: Sequence[str], annotators: Sequence[str], rows: Sequence[ImageVotes]
) -> list[VotesOut]:
    """The representations of votes; `classes` are names of a version of the labels by class id."""
    numbers = {row.consensus.image for row in rows}
    images = {image.number: image for image in dataset_index.read_images(folder, numbers=numbers, version=version)}
    return [image_votes_out(images[row.consensus.image], classes, annotators, row) for row in rows]


def image_votes_out(
    image: ImageRecord, classes: Sequence[str], annotators: Sequence[str], row: ImageVotes | None
) -> VotesOut:
    """The representation of the votes on one image; `row` is None where nobody has voted."""
    labels = [None] * len(annotators) if row is None else list(row.votes)
    consensus = None if row is None else row.consensus
    majority, dawid_skene = (
        None if consensus is None else ConsensusLabel(label=label, confidence=round(confidence, 6))
        for label, confidence in (("", 0.0) if consensus is None else consensus.by(rule) for rule in votes.RULES)
    )
    return VotesOut(
        index=image.number,
        path=image.path,
        split=image.split,
        given_label=None if image.given is None else classes[image.given],
        votes=[Vote(annotator=name, label=label) for name, label in zip(annotators, labels, strict=True)],
        majority=majority,
        dawid_skene=dawid_skene,
    )


def csv_line(image: ImageRecord, row: ImageVotes, classes: Sequence[str]) -> tuple[object, ...]:
    """The cells of an image in the table of votes."""
    given = None if image.given is None else classes[image.given]
    return (image.number, image.path, image.split, given, *row.votes, *row.consensus[1:])
