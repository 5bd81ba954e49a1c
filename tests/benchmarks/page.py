"""U1 to U4: the grid of 100,000 pictures in a real browser, against a real service.

U1 is the time from the navigation until the first picture is decoded. While the page is then scrolled by a window's
height every 100 ms for ten seconds, U2 counts the frames in which a place of the window where a cell belongs shows
none, and U3 the frames a second; U4 is the private memory of the tab's process at the moment when every row is loaded,
garbage included: the pages of the program itself, some 120 MB, are the same for all tabs. It is that of another tab,
which Playwright does not drive: Playwright listens to the network, and the process of a tab holds the body of every
response for such a listener.
Where the browser draws without a GPU, U3 says how fast the processor is.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
from playwright.sync_api import Browser, ViewportSize, sync_playwright
from websockets.sync.client import connect

from tests import pictures, servers
from tests.benchmarks._sizes import size
from tests.e2e.conftest import ARGUMENTS, CHROMIUMS, launched
from tests.servers import eventually

PICTURES = size(100_000, 300)
CLASSES = 100
SCROLL_S = size(10.0, 0.5)
WINDOW: ViewportSize = {"width": 1280, "height": 900}
END = 35  # the key's number
FIRST_MS, BLANK_FRAMES, FRAMES_PER_S, TAB_MB = 1000, 0, 60, 500
TARGETS: dict[str, tuple[str, str, float, bool]] = {  # by id: what is measured, unit, target, whether more is better
    "U1": (f"first picture of {PICTURES} in the grid", "ms", FIRST_MS, False),
    "U2": ("frames with a blank row while scrolling", "frames", BLANK_FRAMES, False),
    "U3": ("frames a second while scrolling", "1/s", FRAMES_PER_S, True),
    "U4": ("private memory of the tab with all rows loaded", "MB", TAB_MB, False),
}
FIRST_PICTURE = """() => {
    const picture = document.querySelector(".grid .cell img");
    return picture?.complete && picture.naturalWidth > 0 && performance.now();
}"""
SCROLL = """async (seconds) => {
    const started = performance.now();
    let [frames, blank, moved] = [0, 0, started];
    while (performance.now() - started < 1000 * seconds) {
        await new Promise(requestAnimationFrame);
        frames += 1;
        const grid = document.querySelector(".grid").getBoundingClientRect();
        for (const share of [0.1, 0.5, 0.9]) {
            const [x, y] = [grid.left + 40, innerHeight * share];
            const inside = y > grid.top && y < grid.bottom;
            if (!inside || document.elementFromPoint(x, y)?.closest(".grid li")) continue;
            blank += 1;
            break;
        }
        if (performance.now() - moved < 100) continue;
        moved = performance.now();
        scrollBy({ top: innerHeight, behavior: "instant" });
    }
    return { frames, blank, seconds: (performance.now() - started) / 1000 };
}"""


def archive() -> bytes:
    """Different pictures in class folders, with few different contents: each has a comment of its own."""
    file = io.BytesIO()
    bodies = [pictures.encoded(seed, 48, 48, hue=seed) for seed in range(64)]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for number in range(PICTURES):
            body = bodies[number % len(bodies)]
            comment = b"\xff\xfe\x00\x08" + f"{number:06}".encode()
            archive.writestr(f"train/class {number % CLASSES:03}/{number:06}.jpg", body[:2] + comment + body[2:])
    return file.getvalue()


def uploaded(api: httpx2.Client) -> str:
    """The id of the data set, once its images are read."""
    made = api.post("/datasets?name=large", content=archive(), headers={"Content-Type": "application/zip"})
    dataset: str = made.raise_for_status().json()["id"]
    eventually(lambda: api.get(f"/datasets/{dataset}").json()["status"] != "ingesting", seconds=900.0)
    answer = api.get(f"/datasets/{dataset}").json()
    assert (answer["status"], answer["images"]) == ("ready", PICTURES), answer
    return dataset


def measure(browser: Browser, debugger: str, url: str, dataset: str) -> dict[str, float]:
    """What is measured, by id; `debugger` is the address of the browser's own protocol."""
    page = browser.new_context(viewport=WINDOW).new_page()
    page.goto(f"{url}/ui/datasets")  # the browser's own start is none of the page's time
    page.goto(f"{url}/ui/datasets/{dataset}")
    first = page.wait_for_function(FIRST_PICTURE, polling="raf").json_value()
    scrolled = page.evaluate(SCROLL, SCROLL_S)
    page.context.close()
    memory = bytes_at_the_end(browser, debugger, f"{url}/ui/datasets/{dataset}")
    return {
        "U1": round(first, 0),
        "U2": scrolled["blank"],
        "U3": round(scrolled["frames"] / scrolled["seconds"], 1),
        "U4": round(memory / 1e6, 0),
    }


def bytes_at_the_end(browser: Browser, debugger: str, address: str) -> int:
    """Private memory of a new tab that goes to the last cell that is loaded, until there are no more."""
    made = httpx2.put(f"{debugger}/json/new?{address}").raise_for_status().json()
    with connect(made["webSocketDebuggerUrl"], ping_interval=None) as tab:

        def call(method: str, **parameters: Any) -> Any:
            tab.send(json.dumps({"id": 0, "method": method, "params": parameters}))
            return json.loads(tab.recv())["result"]

        def holds(expression: str) -> bool:
            return call("Runtime.evaluate", expression=f"Boolean({expression})")["result"]["value"] is True

        call("Emulation.setDeviceMetricsOverride", **WINDOW, deviceScaleFactor=1, mobile=False)
        eventually(lambda: holds('document.querySelector(".grid .cell img")'))
        assert holds('document.visibilityState === "visible"'), "a hidden tab draws nothing"
        call("Runtime.evaluate", expression='document.querySelector(".grid .cell").focus()')
        while not holds(f"document.querySelector('.cell[data-place=\"{PICTURES - 1}\"]')"):
            for kind in ("keyDown", "keyUp"):
                call("Input.dispatchKeyEvent", type=kind, key="End", code="End", windowsVirtualKeyCode=END)
            time.sleep(0.05)
        return private_bytes(browser)


def private_bytes(browser: Browser) -> int:
    """Resident memory of the browser's largest process of a tab that no other process shares."""
    sizes = []
    for process in browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]:
        if process["type"] == "renderer":
            lines = Path(f"/proc/{process['id']}/smaps_rollup").read_text().splitlines()
            sizes.append(sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_")))
    return max(sizes)


def print_line(id: str, measured: float | None, **details: Any) -> None:
    what, unit, target, more = TARGETS[id]
    met = None if measured is None else measured >= target if more else measured <= target
    sign = ">=" if more else "<="
    line = {"id": id, "benchmark": f"{what} ({unit})", "measured": measured, "target": f"{sign} {target}", "met": met}
    print(json.dumps(line | details), flush=True)


def main() -> int:
    chromium = os.environ.get("TEST_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if chromium is None:
        for id in TARGETS:
            print_line(id, None, why="no Chromium on PATH (set TEST_CHROMIUM to one)")
        return 0
    with (
        TemporaryDirectory() as folder,
        launched(Path(folder)) as url,
        httpx2.Client(base_url=url, timeout=300) as api,
        sync_playwright() as playwright,
    ):
        dataset = uploaded(api)
        port = servers.free_port()
        arguments = [*ARGUMENTS, f"--remote-debugging-port={port}"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        for id, measured in measure(browser, f"http://127.0.0.1:{port}", url, dataset).items():
            print_line(id, measured)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
