"""Studies: a small file becomes trainings and a table, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ml import __main__ as command
from ml import errors
from ml.data.stored_rows import in_memory
from ml.study import plan, results, rows, sources
from ml.study.sources import DataPaths as At
from ml.training.spec import TrainingSpec
from tests.ml.conftest import halves

HEAD = """
title = "two methods on tiny scenes"
seeds = [1, 2]
paper = "table1"

[spec]
network = "small"
image_size = 16
epochs = 2
batch_size = 16
learning_rate = 0.05
augmentation = "flip"

[data.scenes]
source = "scenes"
train = 48
test = 24
swapped = true
draw = { noise_rate = 0.4 }

[[cells]]
name = "confounded"
data = "scenes"
draw = { noise = "confounded" }
paper = "CIFAR-10 S20"

[[rows]]
label = "CE"
method = "ce"
"""
PAIR = """
[[rows]]
label = "pair"
method = "ce"
params = { networks = 2 }

[[rows]]
label = "pair, g2"
method = "ce"
params = { networks = 2 }
head = "g2"
"""
MEASURED = ("epochs", "heads", "beside", "located", "wrong_labels", "ranking", "facts")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(HEAD + PAIR)
    return path


def planned(path: Path, *only: str) -> plan.Plan:
    return plan.make_plan(plan.read(path), path.parent, only)


def by_run(out: Path) -> dict[str, dict[str, Any]]:
    """What was measured of every run, without the seconds, which differ every time."""
    return {
        json.dumps([result["spec"], result["data"]], sort_keys=True): {
            name: [{k: v for k, v in epoch.items() if "second" not in k} for epoch in result[name]]
            if name == "epochs"
            else result[name]
            for name in MEASURED
        }
        for result in results.read(out)
    }


def test_a_table_follows_from_the_result_files_which_a_second_call_leaves_alone(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command.main(["study", str(study), "--out", str(out)]) == 0
    first = {path.name: path.stat().st_mtime_ns for path in out.glob("*.json") if path.name != "table.json"}
    printed = capsys.readouterr().out
    assert len(first) == 4, "two rows that differ in their head alone are one training"
    assert {path.name for path in out.iterdir()} == {*first, "table.md", "table.csv", "table.json"}

    written = [json.loads((out / name).read_text()) for name in first]
    pairs = [result for result in written if result["spec"]["params"]["networks"] == 2]
    last = [100 * result["epochs"][-1]["test"]["g2"]["accuracy"] for result in pairs]
    swapped = [100 * result["beside"]["swapped"]["g2"]["accuracy"] for result in pairs]
    lines = {line["row"]: line for line in json.loads((out / "table.json").read_text())["lines"]}
    measures = lines["pair, g2"]["measures"]
    assert measures["last"]["mean"] == pytest.approx(statistics.fmean(last))
    assert measures["last"]["std"] == pytest.approx(statistics.stdev(last))
    assert measures["swapped"]["mean"] == pytest.approx(statistics.fmean(swapped))
    seconds = {
        n: {e["spec"]["seed"]: e["seconds"]["cpu"] for e in written if e["spec"]["params"]["networks"] == n}
        for n in (1, 2)
    }
    assert lines["pair"]["cost"] == pytest.approx(statistics.median(seconds[2][s] / seconds[1][s] for s in (1, 2)))
    mean, std = rows.paper_numbers()["table1", "CE", "CIFAR-10 S20"]
    assert lines["CE"]["paper"] == {"mean": mean, "std": std}
    assert f"({mean:g} ± {std:g})" in printed
    assert f"| pair, g2 | {statistics.fmean(last):.1f} ± {statistics.stdev(last):.1f} |" in printed

    assert command.main(["study", str(study), "--out", str(out)]) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in first} == first
    (study.parent / "elsewhere").mkdir()
    assert command.main(["study", str(study), "--out", str(study.parent / "elsewhere"), "--table"]) == 0
    assert "| CE | – (84 ± 0.66) |" in capsys.readouterr().out, "a table without results has no numbers of ours"


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was_and_processes_change_no_number(study: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    arguments = [sys.executable, "-m", "ml", "study", str(study), "--out", str(out), "--jobs", "2"]
    running = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert running.stderr is not None
    for line in running.stderr:
        if line.strip().startswith("1/4"):
            break
    os.kill(running.pid, signal.SIGKILL)
    running.stderr.read()  # to the end: until its processes, too, are gone
    running.wait()
    running.stderr.close()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    assert 1 <= len(finished) <= 4

    assert command.main(["study", str(study), "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert command.main(["study", str(study), "--out", str(alone)]) == 0
    assert by_run(out) == by_run(alone)


def test_rows_and_trainings_that_fail_are_reported_and_the_rest_is_done(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = '[[rows]]\nlabel = "who?"\nmethod = "nobody"\n[[rows]]\nlabel = "what?"\nmethod = "ce"\nparams = {x = 1}\n'
    far = '[[rows]]\nlabel = "far"\nmethod = "ce"\nspec = { network = "nothing" }\n'
    study.write_text(HEAD.replace("[1, 2]", "[1]") + wrong + far)
    assert command.main(["study", str(study), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err

    assert "row 'who?' in 'confounded': unknown method 'nobody'" in printed
    assert "row 'what?' in 'confounded'" in printed
    assert "failed: far, confounded, seed 1: no network is called 'nothing'" in printed
    assert [result["spec"]["method"] for result in results.read(tmp_path / "out")] == ["ce"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nose_rate = 0.4", "nose_rate"),
        ("noise_rate = 40", "noise_rate is a share"),
        ('noise_rate = "much"', "noise_rate"),
        ('noise = "loud"', "no such noise"),
        ("sizes = [0.2]", "sizes"),
    ],
)
def test_scenes_that_cannot_be_drawn_are_a_fault_and_no_end_of_the_study(study: Path, wrong: str, message: str) -> None:
    study.write_text(HEAD + f'[[cells]]\nname = "odd"\ndata = "scenes"\ndraw = {{ {wrong} }}\n')
    study_plan = planned(study)

    [fault] = study_plan.faults
    assert fault.startswith("row 'CE' in 'odd': ")
    assert message in fault
    assert "\n" not in fault
    assert [entry.cell.name for entry in study_plan.entries] == ["confounded", "confounded"]


def test_only_narrows_rows_cells_and_seeds(study: Path) -> None:
    some = planned(study, "row=pair*", "seed=2").entries
    assert [(entry.row.label, entry.seed) for entry in some] == [("pair", 2), ("pair, g2", 2)]
    assert planned(study, "row=CE", "row=pair", "cell=nowhere").entries == ()
    with pytest.raises(errors.UnusableData, match="--only"):
        planned(study, "label=CE")


def test_a_run_is_named_by_what_its_method_does_not_by_what_the_file_leaves_out(study: Path) -> None:
    [shortest] = planned(study, "row=CE", "seed=1").runs()
    study.write_text(HEAD + 'params = { networks = 1, agreement = "off" }\nspec = { momentum = 0.9 }\n')
    [spelled] = planned(study, "row=CE", "seed=1").runs()
    study.write_text(HEAD + "params = { agreement_start = 0.5 }\n")
    [other] = planned(study, "row=CE", "seed=1").runs()

    assert shortest.key == spelled.key
    assert shortest.key != other.key


def test_the_more_specific_setting_overrides(study: Path) -> None:
    study.write_text(
        HEAD.replace('paper = "CIFAR-10 S20"', "spec = { epochs = 3, batch_size = 8 }")
        + 'spec = { epochs = 4, momentum = 0.5 }\nwhen = [{ cells = ["conf*"], spec = { momentum = 0.1 } }]\n'
    )
    [run] = planned(study, "seed=1").runs()
    assert (run.spec.learning_rate, run.spec.batch_size, run.spec.epochs, run.spec.momentum) == (0.05, 8, 4, 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 training and 24 test pictures with a wrong label in three."""
    lines = {"train": ["file,clean,given"], "test": ["file,clean"]}
    for split, count in (("train", 40), ("test", 24)):
        images, labels = halves(count, seed=count)
        (tmp_path / "set" / split).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            name = f"{split}/{number:03}.png"
            Image.fromarray(image.numpy()).save(tmp_path / "set" / name)
            wrong = "abcd"[(label + (number % 3 == 0)) % 4]
            lines[split].append(f"{name},{'abcd'[label]}" + (f",{wrong}" if split == "train" else ""))
    for split, text in lines.items():
        (tmp_path / "set" / f"{split}.csv").write_text("\n".join(text) + "\n")
    return tmp_path / "set"


def limited(column: str | tuple[str, ...], seed: int, **limits: Any) -> plan.Run:
    source = plan.DataSet(label_column=column, **limits)
    spec = TrainingSpec(method="ce", network="small", image_size=16, seed=seed)
    return plan.Run(spec, "set", source)


def test_limits_draw_by_seed_the_same_pictures_whatever_their_given_labels(folder: Path) -> None:
    clean, noisy = (sources.load(limited(c, 1, train_per_class=4, test=7), At(folder)) for c in ("clean", "given"))
    other = sources.load(limited("clean", 2, train_per_class=4, test=7), At(folder))

    assert clean.images.labels.bincount().tolist() == [4, 4, 4, 4]
    assert torch.equal(in_memory(clean.images.images), in_memory(noisy.images.images))
    assert noisy.truth.train_clean is not None
    assert torch.equal(noisy.truth.train_clean, clean.images.labels)
    assert not torch.equal(noisy.images.labels, clean.images.labels)
    assert not torch.equal(in_memory(clean.images.images), in_memory(other.images.images))
    assert clean.truth.test_labels is not None
    assert len(clean.truth.test_labels) == 7
    assert len(sources.load(limited("clean", 1, train=11), At(folder)).images) == 11


def test_of_several_label_columns_the_first_existing_one_is_used(folder: Path) -> None:
    first_of_two, named = (sources.load(limited(columns, 1), At(folder)) for columns in (("missing", "given"), "given"))
    assert torch.equal(first_of_two.images.labels, named.images.labels)
    with pytest.raises(errors.UnusableData, match="missing"):
        sources.load(limited(("nowhere", "missing"), 1), At(folder))


def test_a_set_without_test_images_sets_some_aside(folder: Path) -> None:
    (folder / "test.csv").unlink()
    data = sources.load(limited("given", 1, test_share=0.25), At(folder))
    assert data.truth.test_labels is not None
    assert (len(data.images), len(data.truth.test_labels)) == (30, 10)


def test_other_pictures_under_the_same_name_are_another_run(folder: Path) -> None:
    before = sources.fingerprint(At(folder))
    sources.fingerprint.cache_clear()
    (folder / "train.csv").write_text((folder / "train.csv").read_text().replace(",a,", ",b,", 1))
    assert sources.fingerprint(At(folder)) != before


@pytest.mark.parametrize(
    "name",
    ["data_batch_1.bin", "train.bin", "data_batch_1", "CIFAR-10_human.pt", "noisy_label_kv", "clean_label_kv.txt"],
)
def test_other_labels_of_the_same_size_change_the_fingerprint_and_other_pixels_do_not(folder: Path, name: str) -> None:
    def fingerprint_with(file: str, content: bytes) -> str:
        (folder / file).write_bytes(content)
        sources.fingerprint.cache_clear()
        return sources.fingerprint(At(folder))

    assert fingerprint_with("train/more.png", b"one") == fingerprint_with("train/more.png", b"two")
    assert fingerprint_with(name, b"one") != fingerprint_with(name, b"two")


def finished(task: results.Task, accuracy: float) -> None:
    """A result as a training leaves it, as far as a table reads it."""
    figures = dict.fromkeys(("last", "best_noisy_val", "best_test", "mean_last10"), accuracy)
    results.write(
        task,
        {
            **task.run.identity,
            "facts": {"device": "cpu", "torch": "2", "noise_rate": None},
            "seconds": {"cpu": 1.0, "wall": 1.0},
            "heads": {"answer": figures},
            "beside": {},
            "wrong_labels": None,
            "ranking": None,
            "epochs": [{"noisy_validation": {}}],
        },
    )


def test_results_of_other_data_never_stand_in_one_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "study.toml", tmp_path / "out"
    file.write_text(HEAD[: HEAD.index("[data.scenes]")] + '[data.set]\n[[cells]]\nname = "set"\ndata = "set"\n')
    file.write_text(file.read_text() + '[[rows]]\nlabel = "CE"\nmethod = "ce"\n')
    out.mkdir()
    one, two = planned(file).runs()
    finished(results.make_task(one, At(folder), "0123456789abcdef", out), 0.25)
    finished(results.make_task(two, At(folder), "0123456789abcdef", out), 0.25)
    tabulate = ["study", str(file), "--out", str(out), "--table"]

    assert command.main(tabulate) == 0
    assert "| CE | 25.0 ± 0.0 |" in capsys.readouterr().out, "of one set, wherever it lies"
    finished(results.make_task(one, At(folder), sources.fingerprint(At(folder)), out), 0.75)
    assert command.main([*tabulate, "--data", f"set={folder}"]) == 0
    printed = capsys.readouterr()
    assert "| CE | 75.0 [1] |" in printed.out
    assert "2 results of other data" in printed.err
    assert command.main(tabulate) == 1
    refused = capsys.readouterr().err
    assert "2 different data sets called 'set'" in refused
    assert "2 of 0123456789ab" in refused
    assert f"1 of {sources.fingerprint(At(folder))[:12]}" in refused


def test_results_of_scenes_drawn_otherwise_are_not_shown(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = planned(study, "row=CE").runs()
    finished(results.make_task(first, At(), "of another generator", tmp_path), 0.25)
    assert command.main(["study", str(study), "--out", str(tmp_path), "--table", "--only", "row=CE"]) == 0
    printed = capsys.readouterr()
    assert "| CE | – " in printed.out
    assert "1 results of other data" in printed.err


@pytest.fixture
def photographed(tmp_path: Path) -> Path:
    """A study of scenes made of photographs, one row with a mask; the photographs lie in `things` and `grounds`."""
    for folder, shade in (("things", 60), ("grounds", 160)):
        for family in range(2):
            (tmp_path / folder / f"kind {family}").mkdir(parents=True)
            for number in range(4):
                colour = (shade + 10 * family, shade, number)
                Image.new("RGB", (24, 24), colour).save(tmp_path / folder / f"kind {family}" / f"{number}.png")
    path = tmp_path / "study.toml"
    head = HEAD.replace('source = "scenes"', 'source = "scenes"\nobjects = "things"\nplaces = "grounds"')
    path.write_text(head.replace("[1, 2]", "[1]") + '[[rows]]\nlabel = "DeNLL"\nmethod = "denll"\n')
    return path


def test_scenes_of_photographs_need_them_and_measure_the_masks_distance(
    photographed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {name: tmp_path / name for name in ("things", "grounds")}
    called = ["study", str(photographed), "--out", str(tmp_path / "out"), "--data", f"things={paths['things']}"]
    assert command.main(called) == 1
    assert "--data grounds=PATH" in capsys.readouterr().err
    assert command.main([*called, "--data", f"grounds={paths['grounds']}"]) == 0
    assert "Distance of the mask's centre" in capsys.readouterr().out

    by_method = {result["spec"]["method"]: result for result in results.read(tmp_path / "out")}
    run, *_ = planned(photographed).runs()
    at = sources.locate_data("scenes", run.source, tmp_path, paths)
    data = sources.load(run, at)
    assert data.images.classes == ("kind 0", "kind 1")
    assert {result["fingerprint"] for result in by_method.values()} == {sources.fingerprint(at, run.source.draw_json)}
    assert data.object_centres is not None
    guess = (data.object_centres - 7.5).square().sum(dim=1).sqrt().mean()
    assert by_method["ce"]["located"] == {"picture": pytest.approx(float(guess))}
    assert by_method["denll"]["located"].keys() == {"picture", "mask"}
    assert 0 < by_method["denll"]["located"]["mask"] < 16


def test_a_test_of_scenes_shows_other_photographs_than_the_training(photographed: Path, tmp_path: Path) -> None:
    [run, _] = planned(photographed).runs()
    data = sources.load(run, At(objects=tmp_path / "things", places=tmp_path / "grounds"))
    assert data.truth.test_images is not None
    shades = [
        set(images[..., 2].flatten().tolist())
        for images in map(in_memory, (data.images.images, data.truth.test_images))
    ]
    assert shades == [{0, 1, 2}, {3}], "the last of four pictures is kept for the test"


@pytest.mark.parametrize("folder", ["things", "grounds"])
def test_scenes_of_other_photographs_never_stand_in_one_table(
    photographed: Path, tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [run, _] = planned(photographed).runs()
    at = At(objects=tmp_path / "things", places=tmp_path / "grounds")
    before = sources.fingerprint(at, run.source.draw_json)
    finished(results.make_task(run, at, before, tmp_path), 0.25)
    Image.new("RGB", (24, 24), (1, 1, 1)).save(tmp_path / folder / "kind 1" / "3.png")  # shown in the test alone
    sources.fingerprint.cache_clear()
    assert sources.fingerprint(at, run.source.draw_json) != before

    tabulate = ["study", str(photographed), "--out", str(tmp_path), "--table"]
    assert command.main(tabulate) == 1
    assert "--data things=PATH" in capsys.readouterr().err, "a table of scenes is of photographs at hand"
    assert command.main([*tabulate, *(f"--data={name}={tmp_path / name}" for name in ("things", "grounds"))]) == 0
    printed = capsys.readouterr()
    assert "1 results of other data" in printed.err
    assert "25.0" not in printed.out


def test_a_damaged_result_is_named(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged.json").write_text("{")
    assert command.main(["study", str(study), "--out", str(tmp_path), "--table"]) == 1
    assert "damaged.json is damaged" in capsys.readouterr().err


def test_a_data_set_without_a_path_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(errors.UnusableData, match="--data cifar10=PATH"):
        sources.locate_data("cifar10", plan.DataSet(), tmp_path, {})


@pytest.mark.parametrize("path", sorted(plan.FILES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_that_comes_along_can_be_planned(path: Path) -> None:
    study_plan = planned(path)
    assert study_plan.faults == ()
    assert {entry.row.label for entry in study_plan.entries} == {row.label for row in study_plan.study.rows}
    assert study_plan.study.reference in {row.label for row in study_plan.study.rows}
    if study_plan.study.paper is not None:
        known = {row.row.label for row in rows.table_rows(study_plan, []) if row.paper is not None}
        named = {row for number, row, _ in rows.paper_numbers() if number == study_plan.study.paper}
        in_study = {row.paper or row.label for row in study_plan.study.rows if row.label in known}
        copied = {"DivideMix*"}  # its own paper's numbers, above those of its second training
        assert in_study == named - copied, "every row of the paper's table stands in the study"
