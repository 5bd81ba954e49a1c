"""Bodies that change labels: edits as JSON, NDJSON or CSV; flags of a job to accept; a rule of consensus."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from app.errors import Fault, InvalidRequest, LabelsMovedOn, Malformed, UnsupportedMediaType
from app.http import json_text, problems
from app.http.fields import Id, Strict, Text, VersionNumber
from ml.formats import csv_cells, label_versions
from ml.formats.errors import printable
from ml.formats.label_versions import Edit

MAX_EDITS = 100_000  # each costs some twenty microseconds
MAX_BYTES = 16 * 2**20  # of a body with so many
MAX_PARTS = 24 * MAX_EDITS  # see `json_text`; an edit in JSON has 23
NDJSON, CSV = "application/x-ndjson", "text/csv"
COLUMNS = ("image", "from", "to", "action")

Note = Annotated[str, Field(max_length=2000, description="Why; shown with the version")]
Parent = Annotated[VersionNumber, Field(description="The version that the client has seen")]


class LabelEdit(Strict):
    """A change of one image, or of the classes. A change of classes applies to the edits after it."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["image", "from"],
                    "properties": {
                        "action": {"enum": list(label_versions.IMAGE_ACTIONS)},
                        "image": {"type": "integer"},
                    },
                },
                {
                    "properties": {
                        "action": {"not": {"enum": list(label_versions.IMAGE_ACTIONS)}},
                        "image": {"type": "null"},
                    }
                },
            ]
        }
    )

    action: Literal["relabel", "confirm", "exclude", "add_class", "rename_class", "merge_class"]
    image: Annotated[int, Field(ge=0, le=2**53, description="Index of the image; not for classes")] | None = None
    from_: Text | None = Field(
        default=None,
        alias="from",
        description="The label or class before. null for a test image without a label; left out for add_class",
    )
    to: Text | None = Field(default=None, description="The label or class afterwards; left out for confirm and exclude")

    @model_validator(mode="after")
    def _is_complete(self) -> LabelEdit:
        of_image = self.action in label_versions.IMAGE_ACTIONS
        if of_image != (self.image is not None):
            raise ValueError(f"{self.action} {'needs' if of_image else 'takes no'} `image`")
        if of_image and "from_" not in self.model_fields_set:
            raise ValueError("`from` is required: the label that you have seen")
        return self

    def edit(self) -> Edit:
        """The same for `ml.formats.label_versions`."""
        return Edit(self.action, self.image, self.from_, self.to)


class IssueFilter(Strict):
    """Which labels of a job's ranking are meant; all conditions must hold."""

    is_label_issue: bool | None = Field(default=True, description="true: flagged labels; null: all")
    label_score_below: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Only labels with a lower score"
    )
    class_: Text | None = Field(default=None, alias="class", description="Only labels of this class")
    predicted_label: Text | None = Field(default=None, description="Only labels for which this class is suggested")


class AcceptedIssues(Strict):
    """Flags of a job that are accepted."""

    job: Id
    where: IssueFilter = IssueFilter()
    action: Literal["relabel", "exclude"] = Field(
        default="relabel", description="Take the suggested label, or leave the image out"
    )


class ConsensusRule(Strict):
    """A rule by which votes become one label."""

    rule: Literal["majority", "dawid_skene"] = Field(
        description="majority: the label with most votes; dawid_skene: the most probable one, given how each annotator "
        "errs"
    )
    min_confidence: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Only labels with at least this share of the votes, or this probability"
    )
    include_relabelled: bool = Field(
        default=False,
        description="Also change images that an earlier version has relabelled, such as one by another rule",
    )


class LabelConsensus(Strict):
    """Makes a new version whose labels are what annotators agree on."""

    consensus: ConsensusRule
    parent: Parent | None = None
    note: Note = ""


class LabelEdits(Strict):
    """Edits that make a new version of the labels, all of them or none."""

    edits: Annotated[list[LabelEdit], FailFast(), Field(min_length=1, max_length=MAX_EDITS)]
    parent: Parent | None = None
    note: Note = ""


class LabelAcceptance(Strict):
    """Accepts the flags of a job as a new version of the labels."""

    accept: AcceptedIssues
    parent: Parent | None = None
    note: Note = ""


LabelChangeBody = LabelEdits | LabelAcceptance | LabelConsensus


def parse(data: bytes, media_type: str, *, parent: int | None, note: str) -> LabelChangeBody:
    """The change that a body asks for.

    Args:
        data: The body.
        media_type: application/json, application/x-ndjson or text/csv.
        parent: See `LabelEdits`; for bodies of edits alone.
        note: See `LabelEdits`; for bodies of edits alone.

    Raises:
        TooLarge: The body has more than `MAX_PARTS` parts.
        Malformed: The body is not JSON, or not CSV.
        InvalidRequest: A field does not fit; with pointers.
        UnsupportedMediaType: It is none of these.
    """
    json_text.check_parts(data, MAX_PARTS)
    if media_type == "application/json":
        body = json_text.load(data, {})
    elif media_type == NDJSON:
        lines = (line for line in io.BytesIO(data) if not line.isspace())
        body = _body((json_text.load(line, {}) for line in lines), parent, note)
    elif media_type == CSV:
        body = _body(_rows(data), parent, note)
    else:
        raise UnsupportedMediaType(f"Send edits as application/json, {NDJSON} or {CSV}.")
    kind: type[LabelChangeBody] = LabelEdits
    if isinstance(body, dict):
        kind = LabelAcceptance if "accept" in body else LabelConsensus if "consensus" in body else LabelEdits
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise problems.of_body(error, kind) from None


def _body(edits: Iterable[Any], parent: int | None, note: str) -> dict[str, Any]:
    """The JSON body with these edits; reading stops when there are too many."""
    return {"edits": list(itertools.islice(edits, MAX_EDITS + 1)), "parent": parent, "note": note}


def _rows(data: bytes) -> Iterator[dict[str, Any]]:
    """Rows of a CSV file as edits: an empty cell is no value."""
    try:
        reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        unknown = [name for name in header if name not in COLUMNS]
        if unknown or "action" not in header or len(set(header)) < len(header):
            detail = f"The first row must name the columns {', '.join(COLUMNS)}, each once."
            detail += f" There is no column {printable(unknown[0])!r}." if unknown else ""
            raise InvalidRequest(detail, errors=[Fault("/edits", "columns", detail)])
        for number, cells in enumerate(filter(None, reader)):
            if len(cells) != len(header):
                detail = f"The row has {len(cells)} cells, the first row {len(header)}."
                raise InvalidRequest(detail, errors=[Fault(f"/edits/{number}", "cells", detail)])
            yield _edit_of(dict(zip(header, cells, strict=True)))
    except (csv.Error, UnicodeDecodeError):
        raise Malformed("The body is not CSV in UTF-8.") from None


def _edit_of(cells: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {"action": cells["action"].strip()}
    if image := cells.get("image", "").strip():
        values["image"] = int(image) if image.isdecimal() and len(image) < 17 else image
    for name in ("from", "to"):
        text = csv_cells.unescape(cells.get(name, ""))
        if text or (name == "from" and "image" in values):
            values[name] = text or None
    return values


def body_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schemas of the JSON bodies, for the OpenAPI document."""
    models: tuple[type[BaseModel], ...] = (LabelEdits, LabelAcceptance, LabelConsensus)
    schemas: dict[str, dict[str, Any]] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    return schemas


def refuse(faults: list[Fault]) -> None:
    """Raise for edits that do not fit. Labels that have changed meanwhile are a conflict, everything else is invalid.

    Raises:
        InvalidRequest, LabelsMovedOn: There are faults.
    """
    if any(fault.code != label_versions.MOVED_ON for fault in faults):
        raise InvalidRequest(problems.summary(faults), errors=faults)
    if faults:
        raise LabelsMovedOn(problems.summary(faults), errors=faults)
