"""The view of a data set: its pictures, filters, one picture enlarged, versions of its labels; in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests import pictures
from tests.e2e.conftest import Console
from tests.servers import eventually

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]

CLASSES = ("cat", "dog", "neu_steel/rust & co")
PER_CLASS = 200
PICTURES = PER_CLASS * len(CLASSES)


@pytest.fixture(scope="module")
def dataset(service: str) -> str:
    """A data set of three classes, with their pictures one after the other in the order of numbers."""
    named = zip(CLASSES, ("cat", "dog", "rust"), strict=True)
    rows: list[str] = []
    files: dict[str, bytes] = {}
    for label, folder in named:
        for number in range(PER_CLASS):
            path = f"images/{folder}/{number:03}.jpg"
            files[path] = pictures.encoded(len(rows), 24, 24)
            rows.append(f"{path},{label}")
    files["labels.csv"] = pictures.table("file,label", rows)
    with httpx2.Client(base_url=service, timeout=60) as api:
        kind = {"Content-Type": "application/zip"}
        made = api.post("/datasets?name=three+classes&label_column=label", content=pictures.zipped(files), headers=kind)
        path = f"/datasets/{made.raise_for_status().json()['id']}"
        eventually(lambda: api.get(path).json()["status"] == "ready", seconds=60.0)
    return path


@pytest.fixture
def view(page: Page, service: str, dataset: str) -> Iterator[str]:
    """The address of the data set's view, shown; at the end the console must be silent."""
    console = Console(page)
    page.goto(f"{service}/ui{dataset}")
    expect(page.get_by_role("heading", level=1)).to_have_text("three classes")
    yield f"{service}/ui{dataset}"
    assert console.errors == []


def test_only_pictures_near_the_window_are_in_the_document_and_all_can_be_reached(page: Page, view: str) -> None:
    cells = page.locator(".grid .cell")
    expect(cells.first).to_be_visible()
    cells.first.focus()
    assert cells.count() < 200
    page.keyboard.press("End")  # goes to the last that is loaded, and more are
    expect(page.locator(f'li[aria-setsize="{PICTURES}"]').first).to_be_attached()
    page.keyboard.press("End")
    last = page.locator(f'.cell[data-place="{PICTURES - 1}"]')
    expect(last).to_be_focused()
    assert cells.count() < 200
    expect(last.locator("img")).not_to_have_js_property("naturalWidth", 0)
    page.keyboard.press("ArrowUp")
    expect(page.locator(".cell:focus")).to_be_in_viewport()


def test_pictures_that_leave_the_page_are_no_longer_requested(page: Page, view: str) -> None:
    """While a request is open, the browser keeps the picture's element and all around it."""
    page.route("**/thumbnail", lambda route: None)  # none is answered
    with page.expect_request("**/thumbnail"):
        page.reload()
    expect(page.locator(".grid .cell").first).to_be_visible()
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/thumbnail")):
        page.get_by_role("link", name="Classes").click()


def test_memory_does_not_grow_with_pictures_that_have_left_the_page(page: Page, view: str) -> None:
    page.route("**/thumbnail", lambda route: None)  # the worst case: none is answered
    page.reload()
    cells = page.locator(".grid .cell")
    expect(cells.first).to_be_visible()
    cells.first.focus()
    browser = page.context.new_cdp_session(page)

    def nodes() -> int:
        browser.send("HeapProfiler.collectGarbage")
        count: int = browser.send("Memory.getDOMCounters")["nodes"]
        return count

    def leap(key: str, place: int) -> None:
        page.keyboard.press(key)
        expect(page.locator(f'.cell[data-place="{place}"] img')).to_be_attached()

    page.keyboard.press("End")  # goes to the last that is loaded, and more are
    expect(page.locator(f'li[aria-setsize="{PICTURES}"]').first).to_be_attached()
    leap("End", PICTURES - 1)
    leap("Home", 0)
    before = nodes()
    for _ in range(5):
        leap("End", PICTURES - 1)
        leap("Home", 0)
    assert nodes() < 1.5 * before


def test_more_of_the_report_leaves_the_focus_on_what_is_new(page: Page, service: str) -> None:
    files = {f"train/dog/{n}.jpg": pictures.encoded(n, 24, 24) for n in range(1, 5)}
    files |= {f"train/cat/{n}.jpg": pictures.encoded(0, 24, 24) for n in range(25)}  # 24 are copies
    with httpx2.Client(base_url=service, timeout=60) as api:
        kind = {"Content-Type": "application/zip"}
        made = api.post("/datasets?name=copies", content=pictures.zipped(files), headers=kind).raise_for_status()
        path = f"/datasets/{made.json()['id']}"
        eventually(lambda: api.get(path).json()["status"] == "ready", seconds=60.0)
    page.goto(f"{service}/ui{path}?tab=report")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".entries li").nth(20)).to_be_focused()


def test_filters_stand_in_the_address(page: Page, view: str) -> None:
    page.get_by_label("Given label").select_option("neu_steel/rust & co")
    expect(page.get_by_role("status")).to_have_text(f"{PER_CLASS} pictures")
    assert parse_qs(urlsplit(page.url).query) == {"label": [CLASSES[2]]}
    page.get_by_label("Text in the path").fill("19")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("12 pictures")  # 019, 119, and 190 to 199
    page.reload()
    expect(page.get_by_role("status")).to_have_text("12 pictures")
    expect(page.get_by_label("Text in the path")).to_have_value("19")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_label("Text in the path")).to_be_focused()
    expect(page.get_by_role("status")).to_have_text(f"{PICTURES} pictures")


def test_a_picture_is_enlarged_with_what_is_known_of_it_and_the_focus_comes_back(page: Page, view: str) -> None:
    first = page.locator('.cell[data-place="0"]')
    expect(first).to_be_visible()
    first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    zoom = page.get_by_role("dialog")
    expect(zoom.get_by_role("heading", level=2)).to_have_text("images/cat/001.jpg")
    expect(zoom).to_contain_text("24 × 24 px")
    expect(zoom.get_by_role("list").last).to_contain_text("version 1 cat, as uploaded")
    page.keyboard.press("ArrowRight")
    expect(zoom.get_by_role("heading", level=2)).to_have_text("images/cat/002.jpg")
    page.keyboard.press("Escape")
    expect(zoom).to_have_count(0)
    expect(page.locator('.cell[data-place="2"]')).to_be_focused()


def test_classes_lead_to_their_pictures(page: Page, view: str) -> None:
    page.get_by_role("link", name="Classes").click()
    row = page.get_by_role("row", name=re.compile("rust & co"))
    expect(row).to_contain_text(str(PER_CLASS))
    row.get_by_role("link").click()
    expect(page.get_by_label("Given label")).to_have_value(CLASSES[2])
    expect(page.get_by_role("status")).to_have_text(f"{PER_CLASS} pictures")


def test_a_version_shows_what_it_changed_and_can_be_gone_back_to(
    page: Page, view: str, service: str, dataset: str, tmp_path: Path
) -> None:
    with httpx2.Client(base_url=service, timeout=60) as api:
        edits = [{"image": 0, "from": "cat", "to": "dog", "action": "relabel"}]
        api.post(f"{dataset}/labels", json={"edits": edits, "note": "by hand"}).raise_for_status()
        page.goto(f"{view}?tab=labels")
        made = page.get_by_role("listitem").filter(has_text="Version 2")
        made.get_by_role("button", name="What it changed").click()
        expect(made.get_by_role("list", name="Changes of version 2")).to_contain_text("cat dog")
        old = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="Version 1", exact=True))
        old.get_by_role("button", name="Go back to it").click()
        expect(page.get_by_role("heading", name="Version 3")).to_be_visible()
        assert api.get(f"{dataset}/labels").json()["items"][0]["source"] == "revert"

    page.get_by_role("link", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert Path(download.value.path()).read_bytes().startswith(b"PK")
    assert download.value.suggested_filename.endswith("-v3.zip")
