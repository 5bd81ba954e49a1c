"""A study file and the trainings it asks for: rows (methods) times cells (data and noise) times seeds.

It reads TOML and settings, neither pictures nor results. A row that names a method or a setting that does not exist
makes a fault beside the plan, not an end of it.
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

FILES = Path(__file__).parent / "files"  # the studies that come along, known by their names
Statistic = Literal["last", "best_noisy_val", "best_test", "mean_last10"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSet(_Strict):
    """Where pictures come from and how many of them a run sees."""

    source: Literal["folder", "scenes"] = Field(default="folder", description="A folder or zip, or drawn pictures.")
    path: str | None = Field(default=None, description="Seen from the study file; --data NAME=PATH goes before it.")
    objects: str | None = Field(
        default=None, description="Of scenes: the NAME under which --data gives cut-outs to show; without it, drawings."
    )
    places: str | None = Field(
        default=None, description="Of scenes: the NAME under which --data gives photographs to show behind the objects."
    )
    label_column: str | tuple[str, ...] | None = Field(
        default=None, description="The column to learn from; of several the first that the set has."
    )
    train: int | None = Field(default=None, ge=2, description="Training images in total, drawn by seed.")
    test: int | None = Field(default=None, ge=1, description="Test images in total, drawn by seed.")
    train_per_class: int | None = Field(default=None, ge=1, description="Training images of each class at most.")
    test_per_class: int | None = Field(default=None, ge=1, description="Test images of each class at most.")
    test_share: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Share of the images to test on where the set has no test images."
    )
    draw: dict[str, Any] = Field(default_factory=dict, description="Settings of scenes, as `Draw` names them.")
    swapped: bool = Field(default=False, description="Of scenes: measure on pictures before another class's scene too.")

    @property
    def drawn(self) -> str:
        """`draw` as text that equal settings share."""
        return json.dumps(self.draw, sort_keys=True)


class Draw(_Strict):
    """What a study may set of `ml.scenes.generate.draw`, which has the defaults and says which values it takes."""

    model_config = ConfigDict(strict=True)

    own_scene: float | None = None
    noise: str | None = None
    noise_rate: float | None = None
    centred: bool | None = None
    sizes: list[float] | None = Field(default=None, min_length=2, max_length=2)


class Cell(_Strict):
    """A column of the table: data, labels and noise."""

    name: str
    data: str
    label_column: str | tuple[str, ...] | None = None
    noise: dict[str, Any] | None = None
    draw: dict[str, Any] = Field(default_factory=dict)
    spec: dict[str, Any] = Field(default_factory=dict)
    paper: str | None = Field(default=None, description="The column of the paper's table, where it has one.")


class When(_Strict):
    """What is different for a row in some cells, by the cells' names."""

    cells: tuple[str, ...]
    preset: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    spec: dict[str, Any] = Field(default_factory=dict)


class Row(_Strict):
    """A row of the table: a method with its settings, and which of its heads is reported."""

    label: str
    method: str
    preset: str | None = Field(default=None, description="One of the method's presets, below `params`.")
    params: dict[str, Any] = Field(default_factory=dict)
    spec: dict[str, Any] = Field(default_factory=dict)
    head: str = "answer"  # `ml.method.ENSEMBLE`, whose module needs torch
    cells: tuple[str, ...] = ("*",)
    when: tuple[When, ...] = ()
    paper: str | None = Field(default=None, description="The row of the paper's table, where it has one.")


class Study(_Strict):
    """A study file. What is more special wins: study, cell, row, row in a cell."""

    title: str
    about: str = ""
    like: str | None = Field(
        default=None,
        description="A study beside this one whose rows stand here too, without what they say of the training spec; a "
        "row of this study takes the place of one with its label.",
    )
    paper: str | None = Field(default=None, description="The paper's table, as `ml/study/paper.csv` calls it.")
    report: Statistic = Field(default="last", description="What the paper's number is to be compared with.")
    reference: str = Field(default="CE", description="The row whose seconds are the unit of cost.")
    seeds: tuple[int, ...] = (1, 2, 3)
    spec: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, DataSet]
    cells: tuple[Cell, ...]
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training and its data; rows that differ only in the head they report share it."""

    spec: TrainingSpec
    data: str
    source: DataSet

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the result besides the pictures: defaults of the spec left out, those of the method not."""
        source = self.source.model_dump(mode="json", exclude_defaults=True, exclude={"path"})
        spec = {"method": self.spec.method, **self.spec.model_dump(mode="json", exclude_defaults=True)}
        return {"spec": spec, "data": {"name": self.data, **source}}

    @property
    def key(self) -> str:
        """The identity as text that equal runs share."""
        return key(self.identity)


def key(identity: Mapping[str, Any]) -> str:
    """A run's key from its identity, or from a result, which holds it."""
    return json.dumps({name: identity[name] for name in ("spec", "data")}, sort_keys=True)


@dataclass(frozen=True)
class Entry:
    """A seed of a row in a cell."""

    row: Row
    cell: Cell
    seed: int
    run: Run


@dataclass(frozen=True)
class Plan:
    """All that a study asks for, in the order in which to do it: seeds outside, so that a table fills evenly."""

    study: Study
    folder: Path
    entries: tuple[Entry, ...]
    faults: tuple[str, ...] = field(default=())

    def runs(self) -> list[Run]:
        """Every training once."""
        return list({entry.run.key: entry.run for entry in self.entries}.values())


def find(name: str) -> Path:
    """The file of this path, or the study of this name that comes along; UnknownName if there is neither."""
    known = {path.stem: path for path in sorted(FILES.glob("*.toml"))}
    if Path(name).is_file():
        return Path(name)
    if name in known:
        return known[name]
    raise errors.UnknownName(f"no study file {name!r}", hint=f"a path, or one of {', '.join(known)}")


def read(path: Path) -> Study:
    """The study in a file; UnusableData if it is no TOML or says what no study says."""
    try:
        study = Study.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        if study.like is not None:
            own = {row.label: row for row in study.rows}
            taken = [own.pop(row.label, _without_spec(row)) for row in read(path.with_stem(study.like)).rows]
            study = study.model_copy(update={"rows": (*taken, *own.values())})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError, OSError) as error:
        raise errors.UnusableData(f"{path.name}: {errors.one_line(error)}", code="study_file") from error
    if unknown := {cell.data for cell in study.cells} - set(study.data):
        raise errors.UnusableData(f"{path.name}: no data set {', '.join(sorted(unknown))}", code="study_file")
    for names in ([cell.name for cell in study.cells], [row.label for row in study.rows]):
        if len(set(names)) < len(names):
            raise errors.UnusableData(f"{path.name}: a name of a row or cell occurs twice", code="study_file")
    return study


def _without_spec(row: Row) -> Row:
    """The row for another scale: its method and settings, without network, epochs and rates."""
    return row.model_copy(update={"spec": {}, "when": tuple(when.model_copy(update={"spec": {}}) for when in row.when)})


def lay_out(study: Study, folder: Path, only: Sequence[str] = ()) -> Plan:
    """The plan of a study whose file lies in `folder`, narrowed by `only`: texts like `row=denll*`, `seed=1`."""
    entries, faults = [], []
    chosen = _Only.of(only)
    for seed in study.seeds:
        for cell in study.cells:
            for row in study.rows:
                if not (any(fnmatch.fnmatchcase(cell.name, glob) for glob in row.cells) and chosen(row, cell, seed)):
                    continue
                try:
                    entries.append(Entry(row, cell, seed, _run(study, row, cell, seed)))
                except (errors.UnknownName, errors.UnusableData, ValidationError) as error:
                    faults.append(f"row {row.label!r} in {cell.name!r}: {errors.one_line(error)}")
    return Plan(study, folder, tuple(entries), tuple(dict.fromkeys(faults)))


def _run(study: Study, row: Row, cell: Cell, seed: int) -> Run:
    special = [when for when in row.when if any(fnmatch.fnmatchcase(cell.name, glob) for glob in when.cells)]
    spec = study.spec | cell.spec | row.spec
    presets = [name for name in (row.preset, *(when.preset for when in special)) if name is not None]
    params = methods.preset(row.method, presets[-1]) | row.params if presets else dict(row.params)
    for when in special:
        spec, params = spec | when.spec, params | when.params
    if cell.noise is not None:
        spec = spec | {"noise": cell.noise}
    whole = methods.load(row.method).Params.model_validate(params).model_dump(mode="json")
    made = TrainingSpec.model_validate(spec | {"method": row.method, "params": whole, "seed": seed})
    source = study.data[cell.data]
    draw = source.draw | cell.draw
    if source.source == "scenes":
        Draw.model_validate(draw)
        generate.draw(0, seed=seed, image_size=made.image_size, **draw)  # nothing is drawn, the settings are checked
    changes = {"draw": draw, "label_column": cell.label_column or source.label_column}
    return Run(made, cell.data, source.model_copy(update=changes))


@dataclass(frozen=True)
class _Only:
    """Filters of one kind are alternatives; every kind must agree."""

    wanted: dict[str, list[str]]

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Only:
        wanted: dict[str, list[str]] = {}
        for text in texts:
            kind, _, glob = text.partition("=")
            if kind not in ("row", "cell", "seed") or not glob:
                raise errors.UnusableData(f"--only {text}: not row=..., cell=... or seed=...", code="study_filter")
            wanted.setdefault(kind, []).append(glob)
        return cls(wanted)

    def __call__(self, row: Row, cell: Cell, seed: int) -> bool:
        named = {"row": row.label, "cell": cell.name, "seed": str(seed)}
        return all(any(fnmatch.fnmatch(named[kind], glob) for glob in globs) for kind, globs in self.wanted.items())
