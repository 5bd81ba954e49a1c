"""The view of a job in a real browser: what it ran on, and its curves."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Console
from tests.e2e.flags import HARDWARE, Flags

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]


def test_a_job_says_what_it_ran_on_and_its_curves_are_read_by_keys(page: Page, service: str, flagged: Flags) -> None:
    console = Console(page)
    console.expected = {404}  # the job that was written has no artifacts
    page.goto(f"{service}/ui/jobs/{flagged.job}")
    expect(page.locator(".hardware")).to_have_text(f"Ran on {HARDWARE}")
    expect(page.locator(".figures div", has_text="Images a second")).to_contain_text("150")

    loss = page.locator("figure", has_text="Loss")
    expect(loss.get_by_role("img")).to_have_accessible_name(
        "Loss: Training, within epochs 0.500, Training 0.700, Noisy validation 0.900, epoch 1"
    )
    loss.get_by_role("img").focus()
    page.keyboard.press("ArrowRight")
    expect(loss).to_contain_text("epoch 0.25")
    expect(loss.locator(".legend li").first).to_contain_text("0.875")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#announcer")).to_contain_text("epoch 0.5: Training, within epochs 0.75")
    assert console.errors == []
