"""Every requirement id cited in the tree stands in docs/requirements.md, and every id there is cited or marked."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = "docs/requirements.md"
MARK = "*Not cited.*"
ID = re.compile(r"(?<![A-Za-z0-9])[A-Z]{1,4}[0-9]{1,2}(?![A-Za-z0-9])")
ENTRY = re.compile(r"^- \*\*(?P<id>[A-Z]+[0-9]+)\*\* (?P<sentence>.+)$", re.MULTILINE)
RANGE = re.compile(r"\b([A-Z]+)(\d+)-\1(\d+)\b")  # "INV1-INV3" cites three
# Names of the same form that are no requirements: formats, a byte, a lint rule, the protocol of object stores.
FORMATS = {
    "BF16",
    "CE1",
    "CE2",
    "END64",
    "F0",
    "S3",
    "SOF0",
    "SOF15",
    "T20",
    "TF32",
    "UTF8",
    "UTF16",
    "VP8",
    "ZIP64",
} | {
    "INET6",
    "IPV6",
}
NOISE_COLUMN = re.compile(r"[SPI](20|40|45|50|80)")  # columns of the paper's tables: symmetric, pairflip, instance
# T1 to T3 are phases of the paper there; L1 and L2 are norms.
NOTATION = {"T1": "pes", "T2": "pes", "T3": "pes", "L2": "weight decay|penalty|L2 norm"}
SUFFIXES = {".py", ".js", ".md", ".html", ".css", ".yml", ".toml", ".ini", ""}
PASSED_OVER = re.compile(
    r"requirements/|docs/evidence/|ml/study/files/|catalog\.json|uPlot|docs/reference/methods|/vendor/"
)


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Path and text of every tracked source and documentation file, this page and this test left out."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in listing.split("\0"):
        file = ROOT / path
        own = path in (PAGE, str(Path(__file__).relative_to(ROOT)))
        if path and not own and file.suffix in SUFFIXES and file.is_file() and not PASSED_OVER.search(path):
            yield path, file.read_text()


def ids(text: str) -> set[str]:
    """The ids that a text cites, ranges written out."""
    spread = {f"{prefix}{n}" for prefix, first, last in RANGE.findall(text) for n in range(int(first), int(last) + 1)}
    return {name for name in ID.findall(text) if name not in FORMATS and not NOISE_COLUMN.fullmatch(name)} | spread


@pytest.fixture(scope="module")
def requirements() -> dict[str, str]:
    """Sentence by id."""
    entries = ENTRY.findall((ROOT / PAGE).read_text())
    assert len(entries) == len(dict(entries)), "an id stands twice in docs/requirements.md"
    return dict(entries)


@pytest.fixture(scope="module")
def citations() -> dict[str, set[str]]:
    """Paths by cited id, without what is another notation in that file."""
    cited: dict[str, set[str]] = {}
    for path, text in tracked_texts():
        for line in text.splitlines():
            for name in ids(line):
                other = NOTATION.get(name)
                if other is None or not re.search(other, f"{path} {line}"):
                    cited.setdefault(name, set()).add(path)
    return cited


def test_every_cited_requirement_is_on_the_page(requirements: dict[str, str], citations: dict[str, set[str]]) -> None:
    unknown = {name: sorted(paths) for name, paths in citations.items() if name not in requirements}

    assert not unknown


def test_every_requirement_is_cited_or_marked(requirements: dict[str, str], citations: dict[str, set[str]]) -> None:
    unmarked = {name for name, sentence in requirements.items() if MARK not in sentence and name not in citations}
    wrongly_marked = {name for name, sentence in requirements.items() if MARK in sentence and name in citations}

    assert not unmarked, "neither cited nor marked as not cited"
    assert not wrongly_marked, "cited, but marked as not cited"


def test_a_prefix_has_one_section() -> None:
    sections = re.split(r"^## ", (ROOT / PAGE).read_text(), flags=re.MULTILINE)[1:]
    prefixes = [{re.sub(r"\d+", "", name) for name, _ in ENTRY.findall(section)} for section in sections]

    for number, own in enumerate(prefixes):
        others = set().union(*prefixes[:number], *prefixes[number + 1 :])
        assert not own & others
