"""Pictures chosen on the map and in the grid, and reviewed; in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Console
from tests.e2e.flags import CLASSES, PER_CLASS, Flags

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]

ACROSS = 1.1 * (len(CLASSES) - 1)  # coordinates across the shorter side of the map: its points and a margin


@pytest.fixture
def console(page: Page) -> Iterator[Console]:
    console = Console(page)
    yield console
    assert console.errors == []


class Map(NamedTuple):
    """The map on the page, with the middle of its points in its middle."""

    page: Page

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where in the window a coordinate is."""
        box = self.page.locator(".scatter-overlay").bounding_box()
        assert box is not None
        pixels = min(box["width"], box["height"]) / ACROSS
        middle = (len(CLASSES) - 1) / 2
        return box["x"] + box["width"] / 2 + (x - middle) * pixels, box["y"] + box["height"] / 2 - (y - 0.5) * pixels

    def draw_around(self, left: float, right: float, bottom: float, top: float) -> None:
        """Draw around a rectangle, by mouse."""
        self.page.mouse.move(*self.at(left, bottom))
        self.page.mouse.down()
        for corner in ((right, bottom), (right, top), (left, top)):
            self.page.mouse.move(*self.at(*corner), steps=5)
        self.page.mouse.up()


@pytest.fixture
def points(page: Page, console: Console, service: str, flagged: Flags) -> Map:
    page.goto(f"{service}/ui/datasets/{flagged.dataset}?tab=map")
    expect(page.get_by_role("img", name=f"Map of {PER_CLASS * len(CLASSES)} pictures")).to_be_visible()
    return Map(page)


def test_pictures_that_are_drawn_around_on_the_map_are_shown_and_reviewed(page: Page, points: Map) -> None:
    points.draw_around(-0.12, 0.3, -0.1, 1.1)
    status = page.get_by_role("status")
    expect(status).to_have_text(f"{PER_CLASS} pictures chosen")
    cells = page.get_by_role("list", name="Chosen pictures").locator(".cell")
    expect(cells.first).to_have_attribute("aria-label", "train/cat/00.jpg: cat, dog suggested")

    page.get_by_role("button", name="Review them").click()
    count = page.locator(".review-count")
    expect(count).to_have_text(f"0 of {PER_CLASS} reviewed")
    expect(page.locator(".review-side h2")).to_have_text("train/cat/00.jpg")
    page.keyboard.press("c")
    expect(count).to_have_text(f"1 of {PER_CLASS} reviewed")
    expect(page.locator(".saved")).to_have_text("1 in the draft")
    page.reload()
    expect(count).to_have_text(f"1 of {PER_CLASS} reviewed")
    page.keyboard.press("u")
    expect(count).to_have_text(f"0 of {PER_CLASS} reviewed")


def test_the_map_shows_one_class_flags_alone_and_the_picture_at_the_pointer(page: Page, points: Map) -> None:
    page.mouse.move(*points.at(2, 0))
    expect(page.locator(".map-picture")).to_have_text("fox")
    page.mouse.move(*points.at(0, 1))
    expect(page.locator(".map-picture")).to_have_text("cat → dog")
    page.get_by_role("button", name="dog").click()
    expect(page.get_by_role("img", name=f"Map of {PER_CLASS} pictures")).to_be_visible()
    page.get_by_label("Flagged only").check()
    expect(page.get_by_role("img", name="Map of 0 pictures")).to_be_visible()
    page.get_by_role("button", name="dog").click()
    expect(page.get_by_role("img", name=f"Map of {PER_CLASS} pictures")).to_be_visible()  # the cats
    page.get_by_label("Colour").select_option("Suggested label")
    expect(page.get_by_role("button", name="dog")).to_contain_text(str(2 * PER_CLASS))


def test_the_map_is_used_by_keyboard(page: Page, points: Map) -> None:
    page.locator(".scatter-overlay").focus()
    page.keyboard.press("Enter")
    status = page.get_by_role("status")
    expect(status).to_have_text(f"{PER_CLASS * len(CLASSES)} pictures chosen")
    page.keyboard.press("Escape")
    expect(status).to_have_text("No picture is chosen.")
    for _ in range(3):
        page.keyboard.press("+")
    page.keyboard.press("Enter")
    expect(status).to_have_text(f"{2 * PER_CLASS} pictures chosen")  # the two classes in the middle are left in sight
    page.keyboard.press("0")
    page.keyboard.press("Enter")
    expect(status).to_have_text(f"{PER_CLASS * len(CLASSES)} pictures chosen")


def test_pictures_are_chosen_in_the_grid_by_mouse_and_keyboard(
    page: Page, console: Console, service: str, flagged: Flags
) -> None:
    page.goto(f"{service}/ui/datasets/{flagged.dataset}")
    cells = page.locator(".grid .cell")
    expect(cells.nth(3)).to_be_visible()
    page.get_by_role("button", name="Choose pictures").click()
    first, third = (cells.nth(at).bounding_box() for at in (0, 2))
    assert first is not None
    assert third is not None
    page.mouse.move(first["x"] + 30, first["y"] + 30)
    page.mouse.down()
    page.mouse.move(third["x"] + 30, third["y"] + 40, steps=5)
    page.mouse.up()
    expect(page.locator(".cell[aria-pressed=true]")).to_have_count(3)
    cells.nth(0).click()
    expect(cells.nth(0)).to_have_attribute("aria-pressed", "false")
    cells.nth(3).focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Review 3 pictures").click()
    expect(page.locator(".review-count")).to_have_text("0 of 3 reviewed")
    expect(page.locator(".review-side h2")).to_have_text("train/cat/01.jpg")
