"""`python -m ml train`: train on a folder or archive of images, on one device or several."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml import commands, errors
from ml.commands import measure
from ml.training import spec

if TYPE_CHECKING:
    from ml.data.dataset import LabeledImages
    from ml.distributed import process_group
    from ml.distributed.launch import RankInfo

SILENCE_S = 600.0  # after which one of several processes is lost to the others
CHECKPOINT_S = 60.0  # between checkpoints inside an epoch; every epoch writes one anyway
PLAIN_OPTIONS = (
    "method", "network", "image_size", "resize", "epochs", "batch_size", "learning_rate", "momentum", "weight_decay",
    "schedule", "decay", "floor", "augmentation", "seed", "validation_fraction", "precision", "deterministic",
    "pretrained",
)  # fmt: skip


def add(parsers: commands.Commands[argparse.ArgumentParser]) -> None:
    """The command's options: the training spec's own, and where things are."""
    train = parsers.add_parser("train", help="train on a folder or archive of images, resuming where it was stopped")
    train.add_argument("data", type=Path, help="a folder, zip or tar: class folders, or images with a table")
    train.add_argument("--out", type=Path, default=Path("trained"), help="where checkpoints and the bundle go")
    train.add_argument("--spec", type=Path, help="a JSON file with a whole training spec; options override it")
    train.add_argument("--preset", help="a preset of the method, by its name; --params stand above it")
    train.add_argument("--params", type=commands.json_option, help="the method's settings as JSON")
    train.add_argument("--milestones", type=commands.json_option, help="of multistep, as JSON: [0.5, 0.75]")
    train.add_argument(
        "--noise", type=commands.json_option, help='noise to inject, as JSON: {"kind": "symmetric", "rate": 0.4}'
    )
    commands.add_column_options(train)
    train.add_argument("--threads", type=int, help="CPU threads, of each process")
    train.add_argument("--devices", help="cuda:1, or several together: cuda:0,cuda:1; default: the spec's")
    train.add_argument("--weights", type=Path, help="folder of pretrained weights")
    for name in PLAIN_OPTIONS:
        described = spec.TrainingSpec.model_fields[name].description or ""
        if name == "network":
            defaults = (f"{network} on {device}" for device, network in spec.DEFAULT_NETWORKS.items())
            described += f" Default: {', '.join(defaults)}."
        train.add_argument(f"--{name.replace('_', '-')}", default=None, help=described.replace("%", "%%"))
    train.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, resuming where it was stopped, and leave a bundle, a ranking and the epochs' figures."""
    names = options.devices.split(",") if options.devices else [None]
    if len(names) == 1:
        return _trained(options, names[0], None)
    from ml.distributed import launch
    from ml.training import trainer  # noqa: F401 - what every process needs, imported once

    try:
        return launch.launch(_rank, len(names), options, names)[0]
    except launch.RankEnded as ended:
        raise errors.Failure(f"{ended}: the training stopped") from ended


def _rank(rank_info: RankInfo, options: argparse.Namespace, names: list[str]) -> int:
    """One of the processes that train together; the first alone writes and prints."""
    from ml.distributed import process_group
    from ml.training import devices

    try:
        device = devices.resolve(names[rank_info.rank])
        group = process_group.ProcessGroup.join(
            rank_info.rendezvous, rank_info.rank, rank_info.size, device, timeout_s=SILENCE_S
        )
        return _trained(options, names[rank_info.rank], group)
    except commands.EXPECTED as error:
        print(f"train: {errors.one_line(error)}", file=sys.stderr)
        raise


def _trained(options: argparse.Namespace, device: str | None, group: process_group.ProcessGroup | None) -> int:
    from ml.data import container_dataset
    from ml.reports import selftest
    from ml.serving import model_archive
    from ml.training import checkpoint
    from ml.training.trainer import EpochReport, Trainer

    wanted = _spec(options)
    first = group is None or group.rank == 0
    found = container_dataset.load_container(
        options.data, image_size=wanted.image_size, resize=wanted.resize, columns=[commands.column_names(options)]
    )
    wanted = _suited(wanted, found.images)
    training = Trainer.build(
        wanted,
        found.images,
        truth=found.truth,
        device=device,
        threads=options.threads,
        weights=options.weights,
        group=group,
    )
    if group is not None and not first:
        training.run_follower()
        return 0
    for line in found.report:
        if line.level != "ignored":
            outcome = "left out " if line.level == "excluded" else ""
            print(f"{outcome}{line.path}: {line.detail}", file=sys.stderr)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / commands.SPEC).write_text(wanted.model_dump_json(indent=1), encoding="utf-8")
    known = checkpoint.newest(
        [out / commands.CHECKPOINTS], config_hash=training.config_hash, data_hash=training.data_hash
    )
    for skipped in known.skipped:
        print(f"checkpoint {skipped.path} not used: {skipped.detail}", file=sys.stderr)
    if group is not None:
        group.broadcast_object(None if known.path is None else str(known.path))
    if known.state is not None:
        training.restore(known.state)
        print(f"resumed at epoch {training.epoch}, step {training.step}", file=sys.stderr)
    saved = time.monotonic()
    for event in training:
        if isinstance(event, EpochReport):
            print(f"\r{_line(event)}", file=sys.stderr)
        elif sys.stderr.isatty():
            print(f"\repoch {event.epoch} step {event.step + 1}/{event.steps}  ", end="", file=sys.stderr, flush=True)
        if isinstance(event, EpochReport) or time.monotonic() - saved > CHECKPOINT_S:
            checkpoint.write(out / commands.CHECKPOINTS, training.state())
            saved = time.monotonic()
    if group is not None:
        group.leave()
    lines = [json.dumps(report.to_json(), allow_nan=False) + "\n" for report in training.history]
    (out / commands.EPOCHS).write_text("".join(lines), encoding="utf-8")
    if (issues := training.label_issues()) is not None:
        _write_issues(out / commands.ISSUES, issues, found.names, training.labels.tolist(), training.classes)
    if (tested := selftest.outcome(training, issues, found.images.labels)) is not None:
        (out / commands.SELF_TEST).write_text(json.dumps(tested, indent=1, allow_nan=False), encoding="utf-8")
    shutil.rmtree(
        out / commands.BUNDLE, ignore_errors=True
    )  # of the same training before, which a bundle never overwrites
    model_archive.save(out / commands.BUNDLE, training, metrics={"test_accuracy": training.summary()})
    return measure.run(argparse.Namespace(trained=out))


def _spec(options: argparse.Namespace) -> spec.TrainingSpec:
    """The spec file, then the options on top of it; a network that suits the device where neither names one."""
    from ml import methods
    from ml.training import devices

    settings = commands.read_json(options.spec) if options.spec else {}
    if not isinstance(settings, dict):
        raise errors.UnusableData(f"{options.spec} holds no settings by their names", code="damaged_json")
    for name in (*PLAIN_OPTIONS, "milestones", "params", "noise"):
        if (value := getattr(options, name)) is not None:
            settings[name] = value
    if options.preset is not None:
        method = settings.get("method", spec.TrainingSpec().method)
        settings["params"] = methods.preset(method, options.preset) | (options.params or {})
    wanted = spec.TrainingSpec.model_validate(settings)
    if "network" in wanted.model_fields_set:
        return wanted
    first = (options.devices or wanted.device).split(",")[0]  # of several, all of one kind
    return wanted.model_copy(update={"network": spec.DEFAULT_NETWORKS[devices.resolve(first).type]})


def _suited(wanted: spec.TrainingSpec, images: LabeledImages) -> spec.TrainingSpec:
    """With the settings that the method's rules choose for these pictures, unless some were asked for."""
    from ml import methods
    from ml.data.clutter import clutter

    if "params" in wanted.model_fields_set:
        return wanted
    chosen = methods.suited(wanted.method, {"clutter": clutter(images.images.numpy())})
    return wanted.model_copy(update={"params": chosen})


def _line(report: Any) -> str:  # an EpochReport; its module needs torch
    from ml.method import ENSEMBLE
    from ml.training.events import EVALUATION_SPLITS

    known = [(name.replace("_", " "), getattr(report, name).get(ENSEMBLE)) for name in EVALUATION_SPLITS]
    return (
        f"epoch {report.epoch + 1}/{report.epochs} {report.phase}: loss {report.train_loss:.4f}"
        + "".join(f", {name} {score.accuracy:.4f}" for name, score in known if score)
        + f", {report.images_per_second:.0f} images/s"
    )


def _write_issues(path: Path, issues: Any, names: tuple[str, ...], given: list[int], classes: tuple[str, ...]) -> None:
    """The pictures by how suspicious their labels are, worst first; `path` is as the data set names them."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "path", "label_score", "is_label_issue", "given_label", "predicted_label"])
        for index in issues.label_score.argsort(kind="stable"):
            writer.writerow(
                [index, names[index], f"{issues.label_score[index]:.6f}", bool(issues.is_label_issue[index]),
                 classes[given[index]], classes[issues.predicted_label[index]]]
            )  # fmt: skip
