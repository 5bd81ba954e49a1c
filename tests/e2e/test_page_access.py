"""Every view in both themes and on a phone: axe-core finds no violation, nothing is wider than the window, and nothing
moves while it loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Route, expect

from tests.e2e.conftest import Console
from tests.e2e.flags import Flags

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(400)]

AXE = Path(__file__).with_name("vendor") / "axe" / "axe.min.js"
MOST_SHIFT = 0.01  # layout shift: share of the window that moved, times how far
WATCH_SHIFTS = """
    window.shift = 0;
    window.moved = [];
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) if (!entry.hadRecentInput) {
            window.shift += entry.value;
            for (const { node } of entry.sources) window.moved.push(`${entry.value}: ${node?.outerHTML?.slice(0, 80)}`);
        }
    }).observe({ type: "layout-shift", buffered: true });
"""
LONG_NAME_GROWS_BY = """() => {
    const line = document.querySelector(".hardware");
    const [text, height] = [line.textContent, line.offsetHeight];
    line.textContent = "Ran on AMD EPYC 9R14 96-Core Processor, 16 threads";
    const longer = line.offsetHeight - height;
    line.textContent = text;
    return longer;
}"""
VIEWS = {  # by what is there when the view is complete
    "/ui/datasets": ".dataset",
    "/ui/datasets/{dataset}": ".grid .cell",
    "/ui/datasets/{dataset}?tab=map": ".map-legend button",
    "/ui/datasets/{dataset}?tab=classes": "tbody tr",
    "/ui/datasets/{dataset}?tab=labels": ".rows .row",
    "/ui/datasets/{dataset}?tab=report": ".report p",
    "/ui/datasets/{dataset}?tab=export": "#export-format",
    "/ui/train": "#train-form .primary",
    "/ui/jobs": ".row.job",
    "/ui/jobs/{job}": ".gallery li",
    "/ui/review/{job}": ".neighbours .other, .neighbours .same",
    "/ui/compare": ".chooser input",
    "/ui/models": "table",
    "/ui/predict": "#try-panel",
    "/ui/queue": ".queue",
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_no_view_has_a_violation_or_moves_while_it_loads(
    browser: Browser, service: str, flagged: Flags, theme: str, width: int
) -> None:
    scheme: Literal["dark", "light"] = "dark" if theme == "dark" else "light"
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    console = Console(page)
    console.expected = {404}  # the job that was written has no artifacts
    page.add_init_script(WATCH_SHIFTS)
    violations, shifts = {}, {}
    for path, part in VIEWS.items():
        page.goto(service + path.format(dataset=flagged.dataset, job=flagged.job))
        expect(page.locator(part).first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        page.evaluate(AXE.read_text())  # not as a script of the page, whose policy allows none
        result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        broken = [(entry["id"], entry["nodes"][0]["html"]) for entry in result["violations"]]
        if broken:
            violations[path] = broken
        shift = page.evaluate("window.shift")
        if shift > MOST_SHIFT:
            shifts[path] = shift
    context.close()

    assert violations == {}
    assert shifts == {}
    assert console.errors == []


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("events", ["at once", "after the job has ended"])
def test_nothing_moves_while_a_job_is_watched_to_its_end(
    browser: Browser, service: str, flagged: Flags, width: int, events: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    console = Console(page)
    page.add_init_script(WATCH_SHIFTS)
    training = {"dataset_id": flagged.dataset, "method": "ce", "network": "small", "pretrained": False}
    job = flagged.api.post("/jobs", json=training | {"epochs": 4, "image_size": 16}).raise_for_status().json()["id"]
    late: list[Route] = []

    def hold(request: Route) -> None:
        late.append(request)

    if events == "after the job has ended":
        page.route(f"**/jobs/{job}/events", hold)
    page.goto(f"{service}/ui/jobs/{job}")
    expect(page.locator(".status")).to_have_text("running")
    expect(page.locator(".gallery li").first).to_be_visible()
    expect(page.locator(".status")).to_have_text("succeeded")
    assert page.evaluate(LONG_NAME_GROWS_BY) == 0
    for request in late:
        request.continue_()
    expect(page.locator(".chart .legend li").first).to_be_visible()
    shift, moved = page.evaluate("[window.shift, window.moved]")
    context.close()
    assert shift <= MOST_SHIFT, "\n".join(moved)
    assert console.errors == []
