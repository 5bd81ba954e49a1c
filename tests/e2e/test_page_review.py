"""The review of a job's flags in a real browser, by keyboard alone and by touch; what a job found is written for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import Console
from tests.e2e.flags import FLAGGED, PER_CLASS, Flags

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

TRAINED_MS = 120_000
KEY_MS = 100.0  # between two decisions


@pytest.fixture
def console(page: Page) -> Iterator[Console]:
    console = Console(page)
    yield console
    assert console.errors == []


def open_review(page: Page, service: str, flagged: Flags) -> None:
    page.goto(f"{service}/ui/review/{flagged.job}")
    expect(page.locator(".review-count")).to_have_text(f"0 of {FLAGGED} reviewed")


def test_flags_are_reviewed_by_keyboard_undone_found_again_and_published(
    page: Page, console: Console, service: str, flagged: Flags
) -> None:
    open_review(page, service, flagged)
    path = page.locator(".review-side h2")
    expect(path).to_have_text("train/cat/00.jpg")
    expect(page.get_by_label("Most similar pictures").get_by_role("listitem")).to_have_count(8)

    page.keyboard.press("Enter")
    expect(path).to_have_text("train/cat/01.jpg")
    page.keyboard.press("c")
    page.keyboard.press("x")
    page.keyboard.press("3")  # after the two suggested ones: fox
    page.keyboard.press("/")
    page.keyboard.type("steel")
    expect(page.locator("#class-match")).to_have_text("Enter: neu_steel")
    page.keyboard.press("Enter")
    expect(page.locator(".review-count")).to_have_text(f"5 of {FLAGGED} reviewed")
    expect(page.locator(".saved")).to_have_text("5 in the draft")
    decided = {
        0: ("relabelled", "dog"),
        1: ("confirmed", None),
        2: ("excluded", None),
        3: ("relabelled", "fox"),
        4: ("relabelled", "neu_steel"),
    }
    assert flagged.draft() == decided

    page.reload()
    expect(page.locator(".review-count")).to_have_text(f"5 of {FLAGGED} reviewed")
    expect(path).to_have_text("train/cat/05.jpg")
    for left in (4, 3):
        page.keyboard.press("u")
        expect(page.locator(".review-count")).to_have_text(f"{left} of {FLAGGED} reviewed")
        expect(path).to_have_text(f"train/cat/0{left}.jpg")
    assert flagged.draft() == {n: decided[n] for n in range(3)}

    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("x")
    expect(page.locator(".review-count")).to_have_text(f"5 of {FLAGGED} reviewed")
    expect(page.locator(".saved")).to_have_text("5 in the draft")
    assert [flagged.draft()[n][0] for n in (3, 4)] == ["excluded", "excluded"]
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("Exclude the picture")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement !== document.body")

    page.get_by_role("button", name="Publish").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Publish the draft")
    dialog.get_by_label("Note").fill("reviewed")
    dialog.get_by_role("button", name="Publish", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Version 2")).to_be_visible()
    newest = flagged.api.get(f"/datasets/{flagged.dataset}/labels").json()["items"][0]
    assert (newest["counts"], newest["note"]) == ({"relabelled": 1, "confirmed": 1, "excluded": 3}, "reviewed")


@pytest.mark.alone
def test_a_decision_shows_at_once_and_no_flag_needs_more_than_one_key(
    page: Page, console: Console, service: str, flagged: Flags
) -> None:
    open_review(page, service, flagged)
    waits = page.evaluate(
        """async (count) => {
            const shown = () => document.querySelector(".review-side h2").textContent;
            const waits = [];
            for (let n = 0; n < count; n += 1) {
                const [before, start] = [shown(), performance.now()];
                document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
                while (shown() === before) await new Promise(requestAnimationFrame);
                waits.push(performance.now() - start);
            }
            return waits;
        }""",
        FLAGGED - 1,
    )
    page.keyboard.press("Enter")
    expect(page.locator(".review-count")).to_have_text(f"{FLAGGED} of {FLAGGED} reviewed")
    expect(page.locator(".saved")).to_have_text(f"{FLAGGED} in the draft")
    assert flagged.draft() == dict.fromkeys(range(FLAGGED), ("relabelled", "dog"))
    assert sorted(waits)[len(waits) // 2] < KEY_MS


def test_many_flags_are_accepted_with_a_preview_and_taken_back_as_one(
    page: Page, console: Console, service: str, flagged: Flags
) -> None:
    open_review(page, service, flagged)
    page.get_by_role("button", name="Accept many").click()
    dialog = page.get_by_role("dialog", name="Accept many flags")
    dialog.get_by_label("Given label").select_option("cat")
    dialog.get_by_label("Label score below").fill("0.01")
    expect(dialog.get_by_role("status")).to_have_text("10 labels would change.")
    expect(dialog.get_by_role("listitem")).to_have_count(10)
    dialog.get_by_role("button", name="Accept 10 flags").click()
    expect(page.locator(".review-count")).to_have_text(f"10 of {FLAGGED} reviewed")
    assert len(flagged.draft()) == 10
    page.keyboard.press("u")
    expect(page.locator(".review-count")).to_have_text(f"0 of {FLAGGED} reviewed")
    assert flagged.draft() == {}


def test_an_edit_made_while_the_service_does_not_answer_is_sent_when_it_does(
    page: Page, console: Console, service: str, flagged: Flags
) -> None:
    console.expected = {503}
    open_review(page, service, flagged)
    refusals = [503, 503]

    def answer(route: object) -> None:
        if refusals:
            route.fulfill(status=refusals.pop(), json={"title": "Not now"})  # type: ignore[attr-defined]
        else:
            route.continue_()  # type: ignore[attr-defined]

    page.route("**/labels/draft", answer)
    page.keyboard.press("Enter")
    page.keyboard.press("c")
    expect(page.locator(".review-count")).to_have_text(f"2 of {FLAGGED} reviewed")
    expect(page.locator(".saved")).to_have_text("2 in the draft")
    assert flagged.draft() == {0: ("relabelled", "dog"), 1: ("confirmed", None)}


def test_twenty_flags_are_reviewed_by_touch_on_a_phone_and_retrained(
    browser: Browser, service: str, flagged: Flags
) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    console = Console(page)
    open_review(page, service, flagged)
    accept = page.get_by_role("button", name="Accept", exact=True)
    exclude = page.get_by_role("button", name="Exclude", exact=True)
    for number in range(20):
        (exclude if number % 2 else accept).tap()
        expect(page.locator(".review-count")).to_have_text(f"{number + 1} of {FLAGGED} reviewed")
    page.get_by_role("button", name="Undo").tap()
    expect(page.locator(".review-count")).to_have_text(f"19 of {FLAGGED} reviewed")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("button", name="Publish").tap()
    page.get_by_role("button", name="Publish and retrain").tap()
    expect(page.locator(".view.job .status").first).to_have_text("succeeded", timeout=TRAINED_MS)
    job = flagged.api.get(f"/jobs?dataset_id={flagged.dataset}").json()["items"][0]
    assert (job["retrain_of_id"], job["label_version"]) == (flagged.job, 2)
    comparison = flagged.api.get(f"/comparisons?job={flagged.job}&job={job['id']}")
    assert comparison.json()["errors"][0]["code"] == "nothing_in_common", (
        comparison.text
    )  # what was written held none out
    console.expected = {comparison.status_code}  # the page asks too
    assert console.errors == []
    context.close()


@pytest.mark.alone
def test_a_thousand_edits_are_in_the_draft_within_a_second(flagged: Flags) -> None:
    edits = [{"image": n % PER_CLASS, "from": "cat", "action": "confirm"} for n in range(1000)]
    start = time.monotonic()
    answer = flagged.api.post(f"/datasets/{flagged.dataset}/labels/draft", json={"edits": edits})
    took = time.monotonic() - start

    assert answer.json()["sequence"] == 1000
    assert took < 1.0
