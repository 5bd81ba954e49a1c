"""The commands of README and docs/howto, run page by page against a service that runs, on small data.

A fenced `bash` block is run; the blocks of a page share one shell, in their order. A comment before a block changes
that: `<!-- test: syntax -->` marks what needs Docker, root, a GPU or hours, and is checked without being run;
`<!-- test: file PATH -->` marks the content of a file that later blocks use.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from app.settings import Settings
from tests import pictures
from tests.e2e.conftest import launched

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs" / "howto").glob("*.md")))
BLOCK = re.compile(r"(?:<!-- test: (?P<mark>[^>]*?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
ADMIN_KEY = "a-key-for-the-documents"
NEEDS_KEY = "docs/howto/deploy.md"
PAGE_S = 240


class Block(NamedTuple):
    """A fenced block of a page: `mark` is the text of the comment before it, empty without one."""

    language: str
    mark: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(m["language"], m["mark"] or "", m["text"]) for m in BLOCK.finditer(page.read_text())]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def runs(block: Block) -> bool:
    return block.language == "bash" and block.mark == ""


RUN_PAGES = [page for page in PAGES if any(map(runs, blocks(page)))]


@pytest.fixture(scope="module")
def addresses(service: str, data: Path) -> Iterator[dict[bool, str]]:
    """The address that needs no key, and that of a second API of the same service which demands one."""
    with launched(data, "app.main", DENLL_ADMIN_KEY=ADMIN_KEY) as keyed:
        yield {False: service, True: keyed}


@pytest.mark.slow
@pytest.mark.timeout(PAGE_S + 60)
@pytest.mark.parametrize("page", RUN_PAGES, ids=name_of)
def test_every_command_of_a_page_succeeds(page: Path, addresses: dict[bool, str], data: Path, tmp_path: Path) -> None:
    url = addresses[name_of(page) == NEEDS_KEY]
    prepare(tmp_path, data)
    script = ["set -euo pipefail", 'curl() { command curl --fail-with-body --max-time 200 "$@"; }']
    for block in blocks(page):
        if block.mark.startswith("file "):
            file = tmp_path / block.mark.removeprefix("file ")
            file.write_text(block.text)
        elif runs(block):
            script.append(block.text.replace(ADDRESS, url))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DENLL_")}
    environment |= {"DENLL_ADMIN_KEY": ADMIN_KEY, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PAGE_S,
    )

    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def prepare(folder: Path, data: Path) -> None:
    """What the pages presuppose: an archive, an image, the environment, a copy of `ml` to add files to, a database."""
    files = pictures.class_folders(per_class=20, side=24)
    (folder / "pets.zip").write_bytes(pictures.zipped(files))
    (folder / "cat.jpg").write_bytes(pictures.encoded(seed=1, width=24, height=24))
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "ml", folder / "ml")  # compiled files too: most of a short command is its imports
    (folder / "data").mkdir()
    shutil.copy(data / "denll.sqlite", folder / "data")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_can_be_parsed(page: Path) -> None:
    for block in blocks(page):
        if block.language == "bash":
            done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{done.stderr}\n{block.text}"


def marked() -> str:
    """The text of all blocks that are not run."""
    return "\n".join(block.text for page in PAGES for block in blocks(page) if block.mark == "syntax")


def test_every_mark_is_known() -> None:
    marks = {block.mark for page in PAGES for block in blocks(page)}

    assert all(mark in ("", "syntax") or mark.startswith("file ") for mark in marks)


def test_every_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()

    for target in re.findall(r"\bmake ([a-z-]+)", marked()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_setting_exists() -> None:
    known = {f"DENLL_{name.upper()}" for name in Settings.model_fields} | {"DENLL_URL"}
    written = {name for page in PAGES for name in re.findall(r"\bDENLL_[A-Z_]+", page.read_text())}

    assert written <= known


def test_every_file_exists() -> None:
    for file in re.findall(r"(?:-f |install -m 600 )(\S+)", marked()):
        assert (ROOT / file).is_file(), file


@pytest.mark.slow
def test_every_option_of_the_command_line_exists() -> None:
    # a command, and what follows it: of `weights` an action that has options of its own
    lines = re.findall(r"python -m ml (weights \w+|\w+)(.*)", marked())

    assert lines
    for command in {name for name, _ in lines}:
        program = [sys.executable, "-m", "ml", *command.split(), "--help"]
        help_text = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for option in {option for name, rest in lines if name == command for option in re.findall(r"--[a-z-]+", rest)}:
            assert option in help_text, f"ml {command} {option}"


def test_every_link_leads_somewhere() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").rglob("*.md")]
    for document in documents:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.relative_to(ROOT)}: {link}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90
