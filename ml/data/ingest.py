"""From an archive with labels to a ready data set: images decoded and checked, pixels stored, the index written.

Where the labels come from, who uploaded the archive and which row of a database it belongs to is not known here.
Free of torch.
"""

from __future__ import annotations

import collections
import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ml.data import dawid_skene, image_headers, pixel_file
from ml.data.clutter import clutter
from ml.data.decoding import Resize
from ml.data.pixel_file import DecodedImage, PixelFile, Progress, ReadFile
from ml.errors import UndecodableImage, UnusableData
from ml.formats import archive, dataset_index
from ml.formats.records import ImageRecord, ReportLine
from ml.formats.votes import Consensus, ImageVotes, Votes, agreement, majority

BAD_FRACTION = 0.10  # of the images; with more unreadable, a data set is refused
SAMPLE = 1000  # images whose headers suggest the image size
NATIVE_SIDES = range(16, 65)  # uniform squares of these sides are kept as they are
BUCKETS = (32, 64, 96, 128)  # larger inputs (160, 224) are chosen by the user: they cost more than they usually gain


def ingest(
    container: Path,
    images: Iterable[ImageRecord],
    classes: Sequence[str],
    folder: Path,
    *,
    report: Iterable[ReportLine] = (),
    facts: Mapping[str, object] | None = None,
    image_size: int | None = None,
    resize: Resize = "squash",
    threads: int = 1,
    bad_fraction: float = BAD_FRACTION,
    progress: Progress = pixel_file.quiet,
    votes: Votes | None = None,
) -> dict[str, object]:
    """Make a ready data set: decode and check every image, store its pixels, write the index.

    Images of the train split come first, each split in order of path, so the index does not depend on how the data set
    was packed.

    Args:
        container: A zip or a plain tar; nothing of it is extracted to files.
        images: Its images with their labels, as `ml.formats.layout` resolves them.
        classes: Names by class id.
        folder: Where the index and the file of pixels go.
        report: Lines about the container, stored behind those about damaged images.
        facts: About the container, stored with the facts learned here.
        image_size: Pixels of a side; None chooses one by the sizes of the images.
        resize: How an image is made square.
        threads: At most so many decode at a time.
        bad_fraction: The largest share of images that may be unreadable.
        progress: See `pixel_file.decode_all`.
        votes: What annotators say of the images.

    Returns:
        The facts: `digest`, `image_size`, `resize`, `clutter`, counts of images, classes and report lines, and so on.

    Raises:
        UnusableData: too_many_bad_images, too_few_classes, no_images, archive_too_large.
    """
    ordered = sort_images(images)
    with archive.reader(container) as read:
        # Decode everything; what cannot be decoded goes to the report.
        size = image_size or _suggested_size(read, ordered)
        target = dataset_index.pixels_path(folder, size, resize)
        with PixelFile(target, size) as file:
            results = pixel_file.decode_all(read, ordered, file, resize=resize, threads=threads, progress=progress)
            usable, lines = split_decoded(ordered, results)
            check_usable(len(ordered), usable, lines, bad_fraction)

    # What the images say together: copies, classes without images, the facts.
    lines += report
    lines += _report_copies(usable, classes)
    lines += _report_small_classes(usable, classes)
    trained = sum(image.split == "train" for image in usable)
    squares = np.load(target, mmap_mode="r", allow_pickle=False)
    all_facts = {**(facts or {}), **_facts(usable, classes, lines), "image_size": size, "resize": resize}
    all_facts["clutter"] = round(clutter(squares[:trained]), 4)
    image_votes: dict[int, ImageVotes] = {}
    if votes is not None:
        image_votes = find_consensus(usable, votes)
        all_facts["annotators"] = agreement(votes.annotators, image_votes.values())
    annotators = () if votes is None else votes.annotators
    dataset_index.write_index(folder, usable, classes, lines, all_facts, annotators, image_votes)
    return all_facts


def find_consensus(images: Sequence[ImageRecord], votes: Votes) -> dict[int, ImageVotes]:
    """The votes on images by their numbers, with the labels that annotators agree on.

    Args:
        images: Numbered images; those without a vote are left out.
        votes: What annotators say of them.
    """
    voted = [(image.number, votes.by_path[image.path]) for image in images if image.path in votes.by_path]
    if not voted:
        return {}
    names = sorted({vote for _, of_image in voted for vote in of_image if vote is not None})
    ids: dict[str | None, int] = {name: number for number, name in enumerate(names)} | {None: -1}
    table = np.array([[ids[vote] for vote in of_image] for _, of_image in voted], dtype=np.int64)
    fitted = dawid_skene.fit(table, len(names))
    image_votes = {}
    for (number, of_image), label, probability in zip(
        voted, fitted.label.tolist(), fitted.probability.tolist(), strict=True
    ):
        most = majority(of_image)
        assert most is not None, "an image without a vote is not in `by_path`"
        share = of_image.count(most) / sum(vote is not None for vote in of_image)
        image_votes[number] = ImageVotes(of_image, Consensus(number, most, share, names[label], probability))
    return image_votes


def sort_images(images: Iterable[ImageRecord]) -> list[ImageRecord]:
    """The order of a data set: train before test, each by path."""
    return sorted(images, key=lambda image: (image.split != "train", image.path))


def split_decoded(
    images: Sequence[ImageRecord], results: Sequence[DecodedImage]
) -> tuple[list[ImageRecord], list[ReportLine]]:
    """The images that could be decoded, numbered and with their sizes and hashes; a line for each of the others."""
    usable: list[ImageRecord] = []
    lines: list[ReportLine] = []
    for image, result in zip(images, results, strict=True):
        if result.fault is not None:
            lines.append(ReportLine(image.path, *result.fault, "excluded"))
        else:
            usable.append(ImageRecord(*image[:9], len(usable), *result[:4]))  # both are tuples in this order
    return usable, lines


def check_usable(
    total: int, usable: Sequence[ImageRecord], report: Sequence[ReportLine], bad_fraction: float = BAD_FRACTION
) -> None:
    """Refuse a data set of which too little is left.

    Args:
        total: Images before decoding.
        usable: Those that could be decoded.
        report: A line for each of the others.
        bad_fraction: The largest share of images that may be unreadable.

    Raises:
        UnusableData: too_many_bad_images, no_images, too_few_classes.
    """
    bad = total - len(usable)
    if bad > bad_fraction * total:
        worst = report[0]
        raise UnusableData(
            f"{bad} of {total} images cannot be read, for example {worst.path[:150]}: {worst.detail}",
            hint=f"at most {bad_fraction:.0%} may be bad; repair or remove them",
            code="too_many_bad_images",
        )
    if not any(image.split == "train" for image in usable):
        raise UnusableData("there are no training images", code="no_images")
    if len({image.given for image in usable if image.split == "train"}) < 2:
        raise UnusableData("only one class has training images; two are needed", code="too_few_classes")


def _suggested_size(read: ReadFile, images: Sequence[ImageRecord]) -> int:
    """A side by the sizes of a sample: their own where all are equal and small, else the next of `BUCKETS`."""
    sizes = []
    for image in images[:: max(1, len(images) // SAMPLE)]:
        try:
            header = image_headers.header(pixel_file.read_image(read, image))
        except UndecodableImage:
            continue
        sizes.append((header.width, header.height))
    if not sizes:
        return BUCKETS[0]
    width, height = sizes[0]
    if width == height and width in NATIVE_SIDES and len(set(sizes)) == 1:
        return width
    side = statistics.median((width * height) ** 0.5 for width, height in sizes)
    return next((bucket for bucket in BUCKETS if bucket >= side), BUCKETS[-1])


def _report_copies(usable: Sequence[ImageRecord], classes: Sequence[str]) -> list[ReportLine]:
    """Byte-identical images: under two labels, in both splits, or merely repeated."""
    first: dict[str, ImageRecord] = {}
    lines = []
    for image in usable:
        original = first.setdefault(image.sha256, image)
        if original is image:
            continue
        same = f"the same bytes as {original.path}"
        if original.split != image.split:
            detail = f"{same}, which is in {original.split}"
            lines.append(ReportLine(image.path, "train_test_leakage", detail, "warning"))
        else:
            lines.append(ReportLine(image.path, "duplicate_image", same, "warning"))
        if None not in (original.given, image.given) and original.given != image.given:
            labels = f"{_name(classes, original.given)!r} and {_name(classes, image.given)!r}"
            lines.append(ReportLine(image.path, "same_image_two_labels", f"{same}, labelled {labels}", "warning"))
    return lines


def _report_small_classes(usable: Sequence[ImageRecord], classes: Sequence[str]) -> list[ReportLine]:
    counts = collections.Counter(image.given for image in usable if image.split == "train")
    lines = []
    for index, name in enumerate(classes):
        if counts[index] == 0:
            lines.append(ReportLine(name, "empty_class", "the class has no training images", "warning"))
        elif counts[index] == 1:
            lines.append(ReportLine(name, "class_of_one", "the class has a single training image", "warning"))
    return lines


def _name(classes: Sequence[str], index: int | None) -> str | None:
    return None if index is None else classes[index]


def _facts(usable: Sequence[ImageRecord], classes: Sequence[str], report: Sequence[ReportLine]) -> dict[str, object]:
    """Counts, sizes and the digest: SHA-256 over path, split, content and labels of every image, in order."""
    pairs = {(image.given, image.clean) for image in usable}
    named = {pair: repr((_name(classes, pair[0]), _name(classes, pair[1]))) for pair in pairs}
    digest = hashlib.sha256()
    for image in usable:
        labels = named[image.given, image.clean]
        digest.update(f"{image.path!r} {image.split} {image.sha256} {labels}\n".encode())
    train = [image for image in usable if image.split == "train"]
    known = [image for image in train if image.clean is not None]
    wrong = sum(image.given != image.clean for image in known)
    levels = collections.Counter(line.level for line in report)
    return {
        "digest": f"sha256:{digest.hexdigest()}",
        "classes": len(classes),
        "train_images": len(train),
        "test_images": len(usable) - len(train),
        "image_bytes": sum(image.image_bytes for image in usable),
        "median_width": statistics.median_low(image.width for image in usable),
        "median_height": statistics.median_low(image.height for image in usable),
        "formats": dict(collections.Counter(image.format for image in usable)),
        "excluded": levels["excluded"],
        "warnings": levels["warning"],
        "ignored": levels["ignored"],
        "known_clean": len(known),
        "noise_rate": wrong / len(known) if known else None,
    }
