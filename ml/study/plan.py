"""Study files, and the runs they plan: rows (methods) times cells (data and noise) times seeds.

It reads TOML, neither images nor results. A row with an unknown method or setting becomes a fault of the plan; the
other rows are planned.
"""

from __future__ import annotations

import fnmatch
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ml import errors, methods
from ml.scenes import generate
from ml.training.spec import TrainingSpec

FILES = Path(__file__).parent / "files"  # studies of this package, known by their file names
Statistic = Literal["last", "best_noisy_val", "best_test", "mean_last10"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSet(_Strict):
    """Where images come from, and how many of them a run uses."""

    source: Literal["folder", "scenes"] = Field(
        default="folder", description="A folder or archive, or synthetic scenes."
    )
    path: str | None = Field(default=None, description="Relative to the study file; --data NAME=PATH overrides it.")
    objects: str | None = Field(
        default=None,
        description="Of scenes: the NAME of --data NAME=PATH for cut-outs of objects; without it they are drawn.",
    )
    places: str | None = Field(
        default=None,
        description="Of scenes: the NAME of --data NAME=PATH for photographs of scenes; without it they are drawn.",
    )
    label_column: str | tuple[str, ...] | None = Field(
        default=None, description="The column of given labels; of several the first that the data set has."
    )
    train: int | None = Field(default=None, ge=2, description="Training images in total, drawn by seed.")
    test: int | None = Field(default=None, ge=1, description="Test images in total, drawn by seed.")
    train_per_class: int | None = Field(default=None, ge=1, description="Training images of each class at most.")
    test_per_class: int | None = Field(default=None, ge=1, description="Test images of each class at most.")
    test_share: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Share of the images to test on where the set has no test images."
    )
    draw: dict[str, Any] = Field(default_factory=dict, description="Settings of scenes, see `SceneSettings`.")
    swapped: bool = Field(
        default=False, description="Of scenes: measure on objects before the scene of another class too."
    )

    @property
    def draw_json(self) -> str:
        """`draw` as canonical JSON."""
        return json.dumps(self.draw, sort_keys=True)


class SceneSettings(_Strict):
    """The arguments of `ml.scenes.generate.draw` that a study may set; see there for meanings, ranges and defaults."""

    model_config = ConfigDict(strict=True)

    own_scene: float | None = None
    noise: str | None = None
    noise_rate: float | None = None
    centred: bool | None = None
    sizes: list[float] | None = Field(default=None, min_length=2, max_length=2)


class Cell(_Strict):
    """A column of the table: data set, labels and noise."""

    name: str = Field(description="The head of the column.")
    data: str = Field(description="The name of a data set of the study.")
    label_column: str | tuple[str, ...] | None = Field(default=None, description="Instead of the data set's.")
    noise: dict[str, Any] | None = Field(default=None, description="`TrainingSpec.noise`.")
    draw: dict[str, Any] = Field(default_factory=dict, description="Settings of scenes, over those of the data set.")
    spec: dict[str, Any] = Field(default_factory=dict, description="Fields of the training spec.")
    paper: str | None = Field(default=None, description="The column of the paper's table, where it has one.")


class CellOverride(_Strict):
    """What differs for a row in some cells."""

    cells: tuple[str, ...] = Field(description="Glob patterns of the names of cells.")
    preset: str | None = Field(default=None, description="Instead of the row's.")
    params: dict[str, Any] = Field(default_factory=dict, description="Over those of the row.")
    spec: dict[str, Any] = Field(default_factory=dict, description="Over that of the row.")


class MethodRow(_Strict):
    """A row of the table: a method with its settings, and the head that is reported."""

    label: str = Field(description="The head of the row.")
    method: str
    preset: str | None = Field(default=None, description="One of the method's presets, below `params`.")
    params: dict[str, Any] = Field(default_factory=dict, description="Of the method.")
    spec: dict[str, Any] = Field(default_factory=dict, description="Fields of the training spec.")
    head: str = "answer"  # `ml.method.ENSEMBLE`, whose module needs torch
    cells: tuple[str, ...] = Field(default=("*",), description="Glob patterns of the names of cells that have the row.")
    when: tuple[CellOverride, ...] = Field(default=(), description="What differs in some of these cells.")
    paper: str | None = Field(default=None, description="The row of the paper's table, where it has one.")


class Study(_Strict):
    """A study file. The `spec` of the cell overrides that of the study, then come the row and the row in the cell."""

    title: str
    about: str = Field(default="", description="Markdown that stands above the tables.")
    like: str | None = Field(
        default=None,
        description="A study beside this one whose rows are copied, without their `spec`; a row of this study replaces "
        "the copied one with the same label.",
    )
    paper: str | None = Field(default=None, description="The paper's table, by its name in `ml/study/paper.csv`.")
    report: Statistic = Field(default="last", description="The accuracy that is compared with the paper's number.")
    reference: str = Field(default="CE", description="The row whose seconds are the unit of cost.")
    seeds: tuple[int, ...] = Field(default=(1, 2, 3), description="Each row is trained once a seed in each cell.")
    spec: dict[str, Any] = Field(default_factory=dict, description="Fields of the training spec, of all runs.")
    data: dict[str, DataSet] = Field(description="Data sets by name.")
    cells: tuple[Cell, ...]
    rows: tuple[MethodRow, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training and its data; rows that differ in the reported head alone share it."""

    spec: TrainingSpec
    data: str
    source: DataSet

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the result besides the images; without defaults of the spec, with those of the method."""
        source = self.source.model_dump(mode="json", exclude_defaults=True, exclude={"path"})
        spec = {"method": self.spec.method, **self.spec.model_dump(mode="json", exclude_defaults=True)}
        return {"spec": spec, "data": {"name": self.data, **source}}

    @property
    def key(self) -> str:
        """The identity as canonical JSON."""
        return key(self.identity)


def key(identity: Mapping[str, Any]) -> str:
    """The key of a run, from its identity or from a result, which contains it."""
    return json.dumps({name: identity[name] for name in ("spec", "data")}, sort_keys=True)


@dataclass(frozen=True)
class PlanEntry:
    """One seed of a row in a cell."""

    row: MethodRow
    cell: Cell
    seed: int
    run: Run


@dataclass(frozen=True)
class Plan:
    """All runs of a study in their order: one seed of every row and cell after another, so tables fill evenly."""

    study: Study
    folder: Path
    entries: tuple[PlanEntry, ...]
    faults: tuple[str, ...] = field(default=())  # rows that cannot be run, and why

    def runs(self) -> list[Run]:
        """Every training once."""
        return list({entry.run.key: entry.run for entry in self.entries}.values())


def find(name: str) -> Path:
    """The study file of this path, or of this name in `FILES`; UnknownName if there is neither."""
    known = {path.stem: path for path in sorted(FILES.glob("*.toml"))}
    if Path(name).is_file():
        return Path(name)
    if name in known:
        return known[name]
    raise errors.UnknownName(f"no study file {name!r}", hint=f"a path, or one of {', '.join(known)}")


def read(path: Path) -> Study:
    """The study in a file; UnusableData (code study_file) if it is not TOML or not a valid study."""
    try:
        study = Study.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        if study.like is not None:
            own = {row.label: row for row in study.rows}
            copied = [own.pop(row.label, _without_spec(row)) for row in read(path.with_stem(study.like)).rows]
            study = study.model_copy(update={"rows": (*copied, *own.values())})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError, OSError) as error:
        raise errors.UnusableData(f"{path.name}: {errors.one_line(error)}", code="study_file") from error
    if unknown := {cell.data for cell in study.cells} - set(study.data):
        raise errors.UnusableData(f"{path.name}: no data set {', '.join(sorted(unknown))}", code="study_file")
    for names in ([cell.name for cell in study.cells], [row.label for row in study.rows]):
        if len(set(names)) < len(names):
            raise errors.UnusableData(f"{path.name}: a name of a row or cell occurs twice", code="study_file")
    return study


def _without_spec(row: MethodRow) -> MethodRow:
    """The row with its method and params, but without network, epochs and learning rates."""
    return row.model_copy(update={"spec": {}, "when": tuple(when.model_copy(update={"spec": {}}) for when in row.when)})


def make_plan(study: Study, folder: Path, only: Sequence[str] = ()) -> Plan:
    """Plan the runs of a study.

    Args:
        study: As `read` returns it.
        folder: Of the study file, to which its paths are relative.
        only: Filters `row=GLOB`, `cell=GLOB`, `seed=GLOB`. Those of one kind are alternatives; all kinds must match.

    Raises:
        UnusableData: A filter is of no kind (code study_filter).
    """
    entries, faults = [], []
    matches = _Filters.parse(only)
    for seed in study.seeds:
        for cell in study.cells:
            for row in study.rows:
                if not (any(fnmatch.fnmatchcase(cell.name, glob) for glob in row.cells) and matches(row, cell, seed)):
                    continue
                try:
                    entries.append(PlanEntry(row, cell, seed, _run(study, row, cell, seed)))
                except (errors.UnknownName, errors.UnusableData, ValidationError) as error:
                    faults.append(f"row {row.label!r} in {cell.name!r}: {errors.one_line(error)}")
    return Plan(study, folder, tuple(entries), tuple(dict.fromkeys(faults)))


def _run(study: Study, row: MethodRow, cell: Cell, seed: int) -> Run:
    # The row's own settings, then those for the cell; the last preset named counts.
    overrides = [one for one in row.when if any(fnmatch.fnmatchcase(cell.name, glob) for glob in one.cells)]
    spec = study.spec | cell.spec | row.spec
    presets = [name for name in (row.preset, *(one.preset for one in overrides)) if name is not None]
    params = methods.preset(row.method, presets[-1]) | row.params if presets else dict(row.params)
    for override in overrides:
        spec, params = spec | override.spec, params | override.params
    if cell.noise is not None:
        spec = spec | {"noise": cell.noise}

    # Defaults of the method are part of a run's identity, since they may change.
    all_params = methods.load(row.method).Params.model_validate(params).model_dump(mode="json")
    training_spec = TrainingSpec.model_validate(spec | {"method": row.method, "params": all_params, "seed": seed})
    source = study.data[cell.data]
    draw = source.draw | cell.draw
    if source.source == "scenes":
        SceneSettings.model_validate(draw)
        generate.draw(0, seed=seed, image_size=training_spec.image_size, **draw)  # of no image: checks the settings
    changes = {"draw": draw, "label_column": cell.label_column or source.label_column}
    return Run(training_spec, cell.data, source.model_copy(update=changes))


@dataclass(frozen=True)
class _Filters:
    """Globs by kind; see `make_plan`."""

    globs_by_kind: dict[str, list[str]]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> _Filters:
        globs_by_kind: dict[str, list[str]] = {}
        for text in texts:
            kind, _, glob = text.partition("=")
            if kind not in ("row", "cell", "seed") or not glob:
                raise errors.UnusableData(f"--only {text}: not row=..., cell=... or seed=...", code="study_filter")
            globs_by_kind.setdefault(kind, []).append(glob)
        return cls(globs_by_kind)

    def __call__(self, row: MethodRow, cell: Cell, seed: int) -> bool:
        values = {"row": row.label, "cell": cell.name, "seed": str(seed)}
        return all(
            any(fnmatch.fnmatch(values[kind], glob) for glob in globs) for kind, globs in self.globs_by_kind.items()
        )
