"""`python -m ml train`: train on a folder or archive of images, on one device or several."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ml import commands, errors
from ml.commands import measure as measure_command
from ml.formats import weights_folder
from ml.training import spec

if TYPE_CHECKING:
    from ml.data.container_dataset import LoadedDataset
    from ml.data.dataset import LabeledImages
    from ml.distributed import process_group
    from ml.distributed.launch import RankInfo
    from ml.evaluation.ranking import LabelIssues
    from ml.training.events import EpochReport
    from ml.training.trainer import Trainer

GROUP_TIMEOUT_S = 600.0  # a process that the others do not hear from for so long has failed
CHECKPOINT_S = 60.0  # between checkpoints inside an epoch
SPEC_OPTIONS = (  # fields of the training spec that are options of the same name
    "method", "network", "tune", "image_size", "resize", "epochs", "batch_size", "learning_rate", "momentum",
    "weight_decay", "schedule", "schedule_unit", "decay", "floor", "layer_decay", "batch_norm", "augmentation",
    "crop_scale", "randaugment", "color_jitter", "mixup", "seed", "validation_fraction", "precision", "deterministic",
    "pretrained",
)  # fmt: skip


def add(parsers: commands.SubParsers[argparse.ArgumentParser]) -> None:
    """Add the command's parser: fields of the training spec, and paths."""
    train = parsers.add_parser("train", help="train on a folder or archive of images, resuming where it was stopped")
    train.add_argument("data", type=Path, help="a folder, zip or tar: class folders, or images with a table")
    train.add_argument(
        "--out", type=Path, default=Path("trained"), help="folder of checkpoints, the model and its results"
    )
    train.add_argument("--spec", type=Path, help="a JSON file with a whole training spec; options override it")
    train.add_argument("--preset", help="a preset of the method; --params override it")
    train.add_argument(
        "--published",
        action="store_true",
        help="with --preset: also the network, epochs, rates and schedule that its paper has; options override them",
    )
    train.add_argument("--params", type=commands.json_option, help="the method's settings as JSON")
    train.add_argument("--milestones", type=commands.json_option, help="of multistep, as JSON: [0.5, 0.75]")
    train.add_argument(
        "--noise", type=commands.json_option, help='noise to inject, as JSON: {"kind": "symmetric", "rate": 0.4}'
    )
    commands.add_column_options(train)
    train.add_argument("--threads", type=int, help="CPU threads, of each process")
    train.add_argument("--eager", action="store_true", help="on a GPU: record no steps, take them one by one")
    train.add_argument("--devices", help="cuda:1, or several together: cuda:0,cuda:1; default: that of the spec")
    commands.add_weights_option(train)
    for name in SPEC_OPTIONS:
        described = spec.TrainingSpec.model_fields[name].description or ""
        if name == "network":
            defaults = (f"{network} on {device}" for device, network in spec.DEFAULT_NETWORKS.items())
            described += f" Default: {', '.join(defaults)}."
        train.add_argument(f"--{name.replace('_', '-')}", default=None, help=described.replace("%", "%%"))
    train.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, resuming where it was stopped; write the model, the label ranking and the reports of the epochs."""
    names = options.devices.split(",") if options.devices else [None]
    if len(names) == 1:
        return _train(options, names[0], None)
    from ml.distributed import launch
    from ml.training import trainer  # noqa: F401 - imported once, before processes fork

    try:
        return launch.launch(_rank, len(names), options, names)[0]
    except launch.RankEnded as ended:
        raise errors.Failure(f"{ended}: the training stopped") from ended


def _rank(rank_info: RankInfo, options: argparse.Namespace, names: list[str]) -> int:
    """Main function of one of several processes; only the first writes and prints."""
    from ml.distributed import process_group
    from ml.training import devices

    try:
        device = devices.resolve(names[rank_info.rank])
        group = process_group.ProcessGroup.join(
            rank_info.rendezvous, rank_info.rank, rank_info.size, device, timeout_s=GROUP_TIMEOUT_S
        )
        return _train(options, names[rank_info.rank], group)
    except commands.EXPECTED as error:
        print(f"train: {errors.one_line(error)}", file=sys.stderr)
        raise


def _train(options: argparse.Namespace, device: str | None, group: process_group.ProcessGroup | None) -> int:
    from ml.training import devices
    from ml.training.trainer import Trainer

    training_spec = _spec(options)
    first = group is None or group.rank == 0
    options.out.mkdir(parents=True, exist_ok=True)
    data = commands.load_data(options, training_spec, options.out)
    training_spec = _with_suggested_params(training_spec, data.images)
    trainer = Trainer.build(
        training_spec,
        data.images,
        truth=data.truth,
        device=device,
        threads=options.threads,
        weights=options.weights,
        cuda_graphs=not options.eager,
        group=group,
        cache=options.out,
    )
    if group is not None and not first:
        trainer.run_follower()
        return 0
    for line in data.report:
        if line.level != "ignored":
            outcome = "left out " if line.level == "excluded" else ""
            print(f"{outcome}{line.path}: {line.detail}", file=sys.stderr)

    if (choice := trainer.inputs.choice) is not None and choice.streamed:
        print(choice.explain(), file=sys.stderr)
    out: Path = options.out
    (out / commands.SPEC).write_text(training_spec.model_dump_json(indent=1), encoding="utf-8")
    if note := devices.precision_note(training_spec.precision, trainer.device):
        print(note, file=sys.stderr)
    _resume(trainer, out, group)
    _train_to_the_end(trainer, out)
    if group is not None:
        group.leave()
    _write_results(trainer, out, data)
    return measure_command.run(argparse.Namespace(trained=out))


def _resume(trainer: Trainer, out: Path, group: process_group.ProcessGroup | None) -> None:
    """Restore the newest valid checkpoint below `out`, if there is one; the other processes load the same."""
    newest = commands.newest_checkpoint(trainer, out)
    if group is not None:
        group.broadcast_object(None if newest.path is None else str(newest.path))
    if newest.state is not None:
        exactly = "" if trainer.restore(newest.state) else "; of another kind of device: random numbers are drawn anew"
        print(f"resumed after epoch {trainer.epoch}, step {trainer.step}{exactly}", file=sys.stderr)


def _train_to_the_end(trainer: Trainer, out: Path) -> None:
    """Train, with checkpoints in `out`: after epochs and inside long ones, and one of the end."""
    from ml.training.checkpoint_writer import CheckpointWriter
    from ml.training.trainer import EpochReport

    notices = trainer.step_runner.notices
    with contextlib.closing(CheckpointWriter(trainer, out / commands.CHECKPOINTS)) as writer:
        for event in trainer:
            while notices:
                print(f"\r{notices.pop(0)}", file=sys.stderr)
            if isinstance(event, EpochReport):
                print(f"\r{_describe(event)}", file=sys.stderr)
            elif sys.stderr.isatty():
                print(
                    f"\repoch {event.epoch} step {event.step + 1}/{event.steps}  ", end="", file=sys.stderr, flush=True
                )
            writer.collect()
            if writer.is_due(0.0 if isinstance(event, EpochReport) else CHECKPOINT_S):
                writer.start()
        writer.collect(wait=True)
        writer.start()
        writer.collect(wait=True)


def _write_results(trainer: Trainer, out: Path, data: LoadedDataset) -> None:
    """Write reports of the epochs, ranking of the labels, self-test and model into `out`."""
    from ml.reports import selftest
    from ml.serving import model_archive

    lines = [json.dumps(report.to_json(), allow_nan=False) + "\n" for report in trainer.history]
    (out / commands.EPOCHS).write_text("".join(lines), encoding="utf-8")
    if (issues := trainer.label_issues()) is not None:
        _write_issues(out / commands.ISSUES, issues, data.names, trainer.labels.tolist(), trainer.classes)
    if (self_test := selftest.outcome(trainer, issues, data.images.labels)) is not None:
        (out / commands.SELF_TEST).write_text(json.dumps(self_test, indent=1, allow_nan=False), encoding="utf-8")
    shutil.rmtree(out / commands.MODEL, ignore_errors=True)  # of an earlier call: `save` never overwrites a model
    model_archive.save(out / commands.MODEL, trainer, metrics={"test_accuracy": trainer.summary()})


def _spec(options: argparse.Namespace) -> spec.TrainingSpec:
    """The spec file, overridden by options.

    If neither names them, the network is the default of the device, and images are cut as pretrained weights expect it.
    """
    from ml import methods
    from ml.training import devices

    settings = commands.read_json(options.spec) if options.spec else {}
    if not isinstance(settings, dict):
        raise errors.UnusableData(f"{options.spec} is not a JSON object", code="damaged_json")
    for name in (*SPEC_OPTIONS, "milestones", "params", "noise"):
        if (value := getattr(options, name)) is not None:
            settings[name] = value
    if options.published and options.preset is None:
        raise errors.UnknownName("--published needs a preset", hint="name one with --preset")
    if options.preset is not None:
        method = settings.get("method", spec.TrainingSpec().method)
        settings["params"] = methods.preset(method, options.preset) | (options.params or {})
        settings = (methods.published_training(method, options.preset) if options.published else {}) | settings
    training_spec = spec.TrainingSpec.model_validate(settings)
    if "network" not in training_spec.model_fields_set:
        first = (options.devices or training_spec.device).split(",")[0]  # several devices are of one kind
        network = spec.DEFAULT_NETWORKS[devices.resolve(first).type]
        network = spec.DEFAULT_BACKBONE if training_spec.pretrained else network
        training_spec = training_spec.model_copy(update={"network": network})
    if training_spec.pretrained and "resize" not in training_spec.model_fields_set and options.weights is not None:
        record = weights_folder.read_record(options.weights, training_spec.network)
        if record is not None:
            training_spec = training_spec.model_copy(update={"resize": record.resize})
    return training_spec


def _with_suggested_params(training_spec: spec.TrainingSpec, images: LabeledImages) -> spec.TrainingSpec:
    """With the params that the method's rules choose for these images, unless params were set."""
    from ml import methods
    from ml.data.clutter import clutter
    from ml.data.stored_rows import ArrayRows

    if "params" in training_spec.model_fields_set:
        return training_spec
    params = methods.suggested_params(training_spec.method, {"clutter": clutter(ArrayRows(images.images))})
    return training_spec.model_copy(update={"params": params})


def _describe(report: EpochReport) -> str:
    from ml.method import ENSEMBLE
    from ml.training.events import EVALUATION_SPLITS

    scores = [(name.replace("_", " "), getattr(report, name).get(ENSEMBLE)) for name in EVALUATION_SPLITS]
    return (
        f"epoch {report.epoch}/{report.epochs} {report.phase}: loss {report.train_loss:.4f}"
        + "".join(f", {name} {score.accuracy:.4f}" for name, score in scores if score)
        + f", {report.images_per_second:.0f} images/s"
    )


def _write_issues(
    path: Path, issues: LabelIssues, names: tuple[str, ...], labels: list[int], classes: tuple[str, ...]
) -> None:
    """A CSV of all training images, lowest label score first.

    Args:
        path: Of the file.
        issues: The ranking of N labels.
        names: N paths, as the data set names its images.
        labels: N given labels.
        classes: Class names.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "path", "label_score", "is_label_issue", "given_label", "predicted_label"])
        for index in issues.label_score.argsort(kind="stable"):
            writer.writerow(
                [index, names[index], f"{issues.label_score[index]:.6f}", bool(issues.is_label_issue[index]),
                 classes[labels[index]], classes[issues.predicted_label[index]]]
            )  # fmt: skip
