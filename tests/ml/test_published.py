"""The formats in which data sets are published, from tiny files made as their authors made them."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from ml import __main__ as command
from ml import errors
from ml.data.container_dataset import load_container
from ml.data.published import pickles
from ml.data.stored_rows import in_memory
from ml.formats.archive import read_archive
from ml.formats.layout import resolve_labels
from ml.formats.table_columns import ColumnNames
from ml.noise.shared import cifar_classes
from ml.study import plan, sources
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import same

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COARSE = tuple(f"group {number:02}" for number in range(20))
RANDOM = np.random.RandomState(0)
PLANES = RANDOM.randint(0, 256, (30, 3072), dtype=np.uint8)
LABELS = np.arange(30) % 10


class Python2(pickle._Pickler):  # the one in Python, whose parts can be replaced
    """Writes text and bytes alike as the strings of Python 2, as the published files have them."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[str] = dispatch[bytes] = save_string


def python2(value: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    Python2(buffer, 2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python_ten(folder: Path) -> None:
    for number in range(2):
        rows = slice(10 * number, 10 * number + 10)
        entries = {"data": PLANES[rows], "labels": LABELS[rows].tolist(), "batch_label": "x"}
        (folder / f"data_batch_{number + 1}").write_bytes(python2(entries))
    (folder / "test_batch").write_bytes(python2({"data": PLANES[20:], "labels": LABELS[20:].tolist()}))
    (folder / "batches.meta").write_bytes(python2({"label_names": list(TEN)}))


def binary_ten(folder: Path) -> None:
    records = np.concatenate([LABELS[:, None].astype(np.uint8), PLANES], axis=1)
    for name, rows in (("data_batch_1.bin", records[:10]), ("data_batch_2.bin", records[10:20])):
        (folder / name).write_bytes(rows.tobytes())
    (folder / "test_batch.bin").write_bytes(records[20:].tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")


def fine_and_coarse() -> tuple[list[int], list[int]]:
    fine = [3 * number for number in range(30)]
    return fine, [cifar_classes.COARSE[number] for number in fine]


def python_hundred(folder: Path) -> None:
    fine, coarse = fine_and_coarse()
    for name, rows in (("train", slice(0, 20)), ("test", slice(20, 30))):
        entries = {"data": PLANES[rows], "fine_labels": fine[rows], "coarse_labels": coarse[rows]}
        (folder / name).write_bytes(python2(entries))
    names = {"fine_label_names": list(cifar_classes.FINE), "coarse_label_names": list(COARSE)}
    (folder / "meta").write_bytes(python2(names))


def binary_hundred(folder: Path) -> None:
    labels = np.array(fine_and_coarse()[::-1], np.uint8).T
    records = np.concatenate([labels, PLANES], axis=1)
    (folder / "train.bin").write_bytes(records[:20].tobytes())
    (folder / "test.bin").write_bytes(records[20:].tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(cifar_classes.FINE))
    (folder / "coarse_label_names.txt").write_text("\n".join(COARSE))


def human(folder: Path, name: str, **arrays: np.ndarray) -> None:
    """As torch.save writes a dictionary of arrays: a zip around a pickle."""
    with zipfile.ZipFile(folder / name, "w") as packed:
        packed.writestr("archive/data.pkl", pickle.dumps(arrays, protocol=2))
        packed.writestr("archive/version", "3\n")


def write(tmp_path: Path, *writers: Callable[[Path], None]) -> Path:
    folder = tmp_path / "set" / "cifar"
    folder.mkdir(parents=True)
    for writer in writers:
        writer(folder)
    return tmp_path / "set"


@pytest.mark.parametrize("writer", [python_ten, binary_ten])
def test_cifar10_is_read_from_its_files_in_their_order(tmp_path: Path, writer: Callable[[Path], None]) -> None:
    loaded = load_container(write(tmp_path, writer), image_size=32)

    assert loaded.images.classes == TEN
    assert loaded.images.labels.tolist() == LABELS[:20].tolist()
    assert np.array_equal(in_memory(loaded.images.images), PLANES[:20].reshape(20, 3, 32, 32).transpose(0, 2, 3, 1))
    assert loaded.truth.train_clean is None
    assert loaded.truth.test_labels is not None
    assert loaded.truth.test_labels.tolist() == LABELS[20:].tolist()


@pytest.mark.parametrize("writer", [python_hundred, binary_hundred])
def test_cifar100_has_classes_and_super_classes(tmp_path: Path, writer: Callable[[Path], None]) -> None:
    folder = write(tmp_path, writer)
    fine, coarse = fine_and_coarse()
    one, other = (
        load_container(folder, image_size=32, columns=[ColumnNames(label=name)]) for name in (None, "coarse_label")
    )

    assert [one.images.classes[n] for n in one.images.labels] == [cifar_classes.FINE[n] for n in fine[:20]]
    assert [other.images.classes[n] for n in other.images.labels] == [COARSE[n] for n in coarse[:20]]


def test_human_labels_are_given_and_the_original_ones_the_truth(tmp_path: Path) -> None:
    wrong = (LABELS[:20] + (np.arange(20) % 4 == 0)) % 10
    folder = write(
        tmp_path, python_ten, lambda at: human(at, "CIFAR-10_human.pt", clean_label=LABELS[:20], worse=wrong)
    )
    loaded = load_container(folder, image_size=32, columns=[ColumnNames(label="worse")])

    assert loaded.images.labels.tolist() == wrong.tolist()
    assert loaded.truth.train_clean is not None
    assert loaded.truth.train_clean.tolist() == LABELS[:20].tolist()
    assert loaded.truth.test_labels is not None
    assert loaded.truth.test_labels.tolist() == LABELS[20:].tolist()
    assert (
        load_container(folder, image_size=32, columns=[ColumnNames(label="clean")]).images.labels.tolist()
        == LABELS[:20].tolist()
    )
    with pytest.raises(errors.UnusableData) as raised:
        load_container(folder, image_size=32)
    assert (raised.value.code, "worse" in str(raised.value)) == ("ambiguous_label_column", True)


def test_human_labels_of_super_classes_have_a_truth_of_their_own(tmp_path: Path) -> None:
    fine, coarse = (np.array(values[:20]) for values in fine_and_coarse())
    arrays = {"clean_label": fine, "noisy_label": fine, "clean_coarse_label": coarse, "noisy_coarse_label": 19 - coarse}
    folder = write(tmp_path, binary_hundred, lambda at: human(at, "CIFAR-100_human.pt", **arrays))
    loaded = load_container(folder, image_size=32, columns=[ColumnNames(label="noisy_coarse_label")])

    assert [loaded.images.classes[n] for n in loaded.images.labels] == [COARSE[n] for n in 19 - coarse]
    assert loaded.truth.train_clean is not None
    assert [loaded.images.classes[n] for n in loaded.truth.train_clean] == [COARSE[n] for n in coarse]


@pytest.mark.parametrize(
    "arrays",
    [
        {"clean_label": np.roll(LABELS[:20], 1), "worse": LABELS[:20]},
        {"clean_label": LABELS[:19], "worse": LABELS[:19]},
        {"worse": LABELS[:20]},
        {"clean_label": LABELS[:20], "worse": LABELS[:20] + 1},
        {"clean_label": LABELS[:20], "worse": LABELS[:20] / 2},
    ],
    ids=["other order", "too few", "nothing to check by", "no such class", "no numbers of classes"],
)
def test_human_labels_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    folder = write(tmp_path, python_ten, lambda at: human(at, "CIFAR-10_human.pt", **arrays))
    with pytest.raises(errors.UnusableData) as raised:
        load_container(folder, image_size=32, columns=[ColumnNames(label="worse")])

    assert raised.value.code == "labels_disagree"


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Harmful(made)))
    assert made.is_dir()  # it would
    made.rmdir()
    harmful = {"label_names": list(TEN), "data": Harmful(made)}

    folder = write(tmp_path, python_ten)
    (folder / "cifar" / "batches.meta").write_bytes(pickle.dumps(harmful, protocol=2))
    with pytest.raises(errors.UnusableData) as raised:
        load_container(folder, image_size=32)
    assert raised.value.code == "unsafe_pickle"
    with pytest.raises(errors.UnusableData) as zipped:
        pickles.read_zipped(zip_of(pickle.dumps(harmful)), "human.pt")
    assert zipped.value.code == "unsafe_pickle"
    assert not made.exists()


def zip_of(packed: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("x/data.pkl", packed)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "numpy.load", "numpy.testing.run_module_suite", "os.system", "_codecs.decode"]
)
def test_only_parts_of_arrays_are_allowed(name: str) -> None:
    module, _, leaf = name.rpartition(".")
    with pytest.raises(errors.UnusableData) as raised:
        pickles.read(f"c{module}\n{leaf}\n.".encode(), "it")

    assert raised.value.code == "unsafe_pickle"


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_and_text_of_every_protocol_come_back(protocol: int) -> None:
    held = {
        "array": np.arange(6).reshape(2, 3),
        "number": np.int64(3),
        "text": "ä",
        b"bytes": b"\xff",
        "list": [1, None],
    }
    loaded = pickles.read(pickle.dumps(held, protocol=protocol), "it")

    assert np.array_equal(loaded.pop("array"), np.arange(6).reshape(2, 3))
    assert loaded == {"number": 3, "text": "ä", "bytes": b"\xff", "list": [1, None]}


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps([1]), pickle.dumps({"a": 1})[:-3]])
def test_what_is_no_pickled_dictionary_is_named(data: bytes) -> None:
    with pytest.raises(errors.UnusableData, match="it ") as raised:
        pickles.read(data, "it")

    assert raised.value.code == "unreadable_pickle"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data_batch_1", python2({"data": PLANES[:10], "labels": [0] * 9})),
        ("data_batch_1", python2({"data": PLANES[:10].astype(float), "labels": [0] * 10})),
        ("data_batch_1", python2({"data": PLANES[:10], "labels": [10] * 10})),
        ("data_batch_1", python2({"labels": [0] * 10})),
        ("batches.meta", python2({})),
    ],
)
def test_damaged_batches_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write(tmp_path, python_ten)
    (folder / "cifar" / name).write_bytes(content)
    with pytest.raises(errors.UnusableData, match=name) as raised:
        load_container(folder, image_size=32)

    assert raised.value.code == "dataset_corrupt"


def test_a_binary_batch_cut_short_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, binary_ten)
    (folder / "cifar" / "test_batch.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(errors.UnusableData, match=r"test_batch\.bin"):
        load_container(folder, image_size=32)


def clothing(folder: Path) -> None:
    keys = [f"images/{number}/{number}.jpg" for number in range(6)]
    for number, key in enumerate(keys[:5]):
        path = folder / key
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((9, 12, 3), 40 * number, np.uint8)).save(path)
    lists = folder / "annotations"
    lists.mkdir()
    (lists / "noisy_train_key_list.txt").write_text("\n".join([*keys[:3], keys[5]]) + "\n")
    (lists / "clean_test_key_list.txt").write_text("\n".join(keys[3:5]) + "\n")
    (lists / "noisy_label_kv.txt").write_text("".join(f"{key} {number % 14}\n" for number, key in enumerate(keys)))
    (lists / "clean_label_kv.txt").write_text(f"{keys[0]} 1\n{keys[3]} 0\n{keys[4]} 13\n")


def test_clothing1m_learns_from_noisy_labels_and_tests_on_clean_ones(tmp_path: Path) -> None:
    loaded = load_container(write(tmp_path, clothing), image_size=8)

    assert loaded.images.classes == ("00", "01", "02", "13")
    assert loaded.images.labels.tolist() == [0, 1, 2]
    assert loaded.truth.train_clean is not None
    assert loaded.truth.train_clean.tolist() == [1, -1, -1]
    assert loaded.truth.test_labels is not None
    assert loaded.truth.test_labels.tolist() == [0, 3]
    assert [(line.path, line.detail) for line in loaded.report] == [("images/5/5.jpg", "no such image")]


def test_clothing1m_is_streamed_where_it_does_not_fit_into_memory(tmp_path: Path) -> None:
    source = write(tmp_path, clothing)
    scratch = tmp_path / "out"
    scratch.mkdir()
    loaded = load_container(source, image_size=16, folder=scratch)
    spec = TrainingSpec(network="small", image_size=16, epochs=1, batch_size=2, validation_fraction=0.0)
    trainings = [
        Trainer.build(spec, loaded.images, truth=loaded.truth, device="cpu", resident_bytes=most) for most in (None, 0)
    ]
    for training in trainings:
        list(training)

    assert [training.inputs.streamed for training in trainings] == [False, True]
    assert same(*(dict(training.method.state_dict()) for training in trainings)) == []
    assert list(scratch.iterdir()) == []  # the pixels lie in a file without a name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("noisy_label_kv.txt", "images/0/0.jpg x\n"),
        ("noisy_label_kv.txt", "images/9/9.jpg 1\n"),
        ("clean_label_kv.txt", "1\n"),
    ],
)
def test_annotations_that_say_nothing_are_named(tmp_path: Path, name: str, content: str) -> None:
    folder = write(tmp_path, clothing)
    (folder / "cifar" / "annotations" / name).write_text(content)
    with pytest.raises(errors.UnusableData, match=name.removesuffix(".txt")) as raised:
        load_container(folder, image_size=8)

    assert raised.value.code == "dataset_corrupt"


@pytest.mark.parametrize(
    ("writers", "column"),
    [
        ((binary_ten,), None),
        (
            (python_ten, lambda at: human(at, "CIFAR-10_human.pt", clean_label=LABELS[:20], worse=9 - LABELS[:20])),
            "worse",
        ),
        ((python_hundred,), "coarse_label"),
        ((clothing,), None),
    ],
    ids=["binary", "human", "super-classes", "clothing"],
)
def test_a_converted_set_is_the_set(
    tmp_path: Path, writers: tuple[Callable[[Path], None], ...], column: str | None
) -> None:
    folder = write(tmp_path, *writers)
    assert command.main(["convert", str(folder), str(tmp_path / "set.zip")]) == 0
    choices = [ColumnNames(label=column, clean=clean) for clean in ("clean", None)]
    before, after = (load_container(p, image_size=32, columns=choices) for p in (folder, tmp_path / "set.zip"))

    assert in_memory(before.images.images).equal(in_memory(after.images.images))
    assert before.images.classes == after.images.classes
    assert before.images.labels.equal(after.images.labels)
    for one, other in (
        (before.truth.test_labels, after.truth.test_labels),
        (before.truth.train_clean, after.truth.train_clean),
    ):
        assert (one is None and other is None) or (one is not None and other is not None and one.equal(other))


def test_the_service_takes_a_converted_set(tmp_path: Path) -> None:
    folder = write(
        tmp_path, python_ten, lambda at: human(at, "CIFAR-10_human.pt", clean_label=LABELS[:20], worse=9 - LABELS[:20])
    )
    assert command.main(["convert", str(folder), str(tmp_path / "set.zip")]) == 0
    loaded = resolve_labels(read_archive(tmp_path / "set.zip"), ColumnNames(label="worse", clean="clean"))
    train = sorted((image for image in loaded.images if image.split == "train"), key=lambda image: image.path)

    assert loaded.classes == TEN
    assert [image.given for image in train] == (9 - LABELS[:20]).tolist()
    assert [image.clean for image in train] == LABELS[:20].tolist()
    assert sum(image.split == "test" for image in loaded.images) == 10


def test_there_is_nothing_to_convert_in_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(b"")

    assert command.main(["convert", str(tmp_path), str(tmp_path / "out.zip")]) == 1
    assert "need no conversion" in capsys.readouterr().err
    assert not (tmp_path / "out.zip").exists()


def test_a_damaged_member_of_a_zip_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(12):
            buffer = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(buffer, "PNG")
            archive.writestr(f"{'ab'[number % 2]}/{number:02}.png", buffer.getvalue())
    held = bytearray(path.read_bytes())
    held[held.index(b"IDAT") + 6] ^= 1
    path.write_bytes(held)
    loaded = load_container(path, image_size=8)

    assert len(loaded.images) == 11
    assert [(line.path, line.code) for line in loaded.report] == [("a/00.png", "bad_checksum")]


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes("file,label\n1.png,Äpfel\n".encode("latin1"))
    with pytest.raises(errors.UnusableData, match=r"train\.csv, line 2: the table is neither UTF-8 nor UTF-16"):
        load_container(tmp_path, image_size=8)


@pytest.mark.parametrize("name", sorted(path.stem for path in plan.FILES.glob("*.toml")))
def test_every_study_learns_from_the_files_of_the_sets_authors(name: str, tmp_path: Path) -> None:
    """CIFAR's own archives hold the column `label`, CIFAR-N's the people's; a folder of the user's may hold all."""
    labels = dict.fromkeys(("aggre_label", "random_label1", "random_label2", "random_label3"), LABELS[:20])
    people = {"clean_label": LABELS[:20], "worse_label": LABELS[:20], **labels}
    hundred = {"clean_label": np.array(fine_and_coarse()[0][:20]), "noisy_label": np.array(fine_and_coarse()[0][:20])}
    folders_of = {
        "cifar10": write(tmp_path / "ten", binary_ten),
        "cifar100": write(tmp_path / "hundred", binary_hundred),
        "cifar10n": write(tmp_path / "people", binary_ten, lambda at: human(at, "CIFAR-10_human.pt", **people)),
        "cifar100n": write(tmp_path / "fine", binary_hundred, lambda at: human(at, "CIFAR-100_human.pt", **hundred)),
    }
    study = plan.read(plan.FILES / f"{name}.toml")
    runs = {run.data + repr(run.source.label_column): run for run in plan.make_plan(study, tmp_path).runs()}

    for run in runs.values():
        if run.data.startswith("cifar"):
            by_people = not {"clean", "label"} & set(run.source.label_column or ())
            at = folders_of[run.data if run.data.endswith("n") or not by_people else f"{run.data}n"]
            assert len(sources.load(run, sources.DataPaths(at)).images) > 0
