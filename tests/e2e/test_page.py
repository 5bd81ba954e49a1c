"""The page in a real browser against the real service: what a data owner does, from upload to mask.

Whatever the browser's console calls an error fails the test, violations of the content security policy included; only
the refusals a test provokes itself are expected there.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from ml import methods
from ml.evaluation import masks
from ml.scenes import generate
from tests import pictures
from tests.e2e.conftest import Console

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(420)]

TRAINED_MS = 240_000


@pytest.fixture
def console(page: Page, service: str) -> Iterator[Console]:
    """Opens the service's page, listening from the first byte on; at the end it demands silence."""
    console = Console(page)
    page.goto(service)
    expect(page.get_by_role("heading", name="Data sets", level=1)).to_be_visible()
    yield console
    assert console.errors == []


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "plates.zip"
    generate.write_archive(path, train=96, test=24, seed=5, noise="ordinary", noise_rate=0.3)
    return path


def upload(page: Page, archive: Path, name: str) -> Locator:
    """Through the page's own file input; returns the row of the data set."""
    page.get_by_label("Choose an archive").set_input_files(archive)
    page.get_by_label("Name", exact=True).first.fill(name)
    page.get_by_role("button", name="Upload").click()
    return page.locator(".dataset", has_text=name)


def go(page: Page, section: str) -> None:
    """Go to a section by the navigation; its heading then has the focus."""
    page.get_by_role("navigation", name="Sections").get_by_role("link", name=section).click()
    expect(page.get_by_role("heading", name=section, level=1)).to_be_focused()


def start(page: Page, dataset: str, name: str, *, epochs: int, noise: str = "") -> Locator:
    """A job of the small network on a data set, from the form; returns its row, open."""
    page.get_by_role("link", name="Data sets").click()
    page.locator(".dataset", has_text=dataset).get_by_role("link", name="Train on it").click()
    form = page.locator("#train-form")
    expect(form.get_by_label("Data set").locator("option:checked")).to_have_text(dataset)
    form.get_by_label("Epochs").fill(str(epochs))
    form.get_by_label("Batch size").fill("32")
    form.get_by_label("Network", exact=True).select_option("small")
    form.get_by_text("More settings").click()
    form.get_by_label("Name").fill(name)
    if noise:
        planted = form.get_by_role("group", name="Noise")
        planted.get_by_label("Kind").select_option(noise)
        planted.get_by_label("Rate").fill("0.2")
    expect(form.locator(".estimate")).to_contain_text("of memory")
    form.get_by_role("button", name="Start training").click()
    return page.locator(".job", has_text=name)


def test_a_network_says_whether_its_weights_are_installed_or_which_command_adds_them(
    page: Page, console: Console
) -> None:
    go(page, "Train")
    network = page.locator("#train-form").get_by_label("Network", exact=True)
    expect(network.locator("optgroup").first).to_have_attribute("label", "Pretrained weights installed")
    network.select_option("efficientnet_lite0")
    expect(network).to_have_accessible_description(re.compile("licence Apache-2[.]0"))
    network.select_option("resnet50")
    expect(network).to_have_accessible_description(re.compile("python -m ml weights add resnet50 installs"))


def test_from_upload_through_training_to_a_mask(page: Page, console: Console, archive: Path, tmp_path: Path) -> None:
    expect(upload(page, archive, "plates").locator(".status")).to_have_text("ready")
    expect(page.locator(".dataset", has_text="plates").locator(".class-name").first).to_have_text("circle")

    page.locator(".dataset", has_text="plates").get_by_role("link", name="Train on it").click()
    form = page.locator("#train-form")
    (rule,) = methods.load("denll").ABOUT["rules"]
    why = f"how much varies .* Below {rule['below']} backgrounds .* Here it is 0[.][0-9]+, so Confounded is used"
    expect(form.get_by_label("Preset")).to_have_accessible_description(re.compile(why))
    expect(form.get_by_role("group", name="Compare with").get_by_role("checkbox", checked=False)).not_to_have_count(0)
    console.expected = {422}  # of a kind of noise without its rate, where the dry run is quicker than the hand
    job = start(page, "plates", "first light", epochs=3, noise="symmetric")
    expect(job.locator(".progress-text")).to_contain_text("epoch")
    curve = job.get_by_role("img", name=re.compile("^Accuracy: Test "))
    expect(curve.locator("path.series").first).to_be_attached(timeout=TRAINED_MS)  # a level line has no height to see
    expect(job.locator(".status")).to_have_text("succeeded", timeout=TRAINED_MS)
    expect(job.get_by_role("region", name="Figures")).to_contain_text("Test accuracy, last epoch")
    tested = job.get_by_role("region", name="Self-test")
    expect(tested).to_contain_text("Symmetric noise made")
    assert json.loads(saved(page, tested, "Save as JSON the self-test"))["noise"] == "symmetric"
    changed = csv.DictReader(io.StringIO(saved(page, tested, "Save the changed labels as CSV").decode()))
    assert all(row["label_before"] != row["given_label"] for row in changed)
    expect(job.locator(".gallery li")).to_have_count(24)
    expect(job.locator(".gallery .predicted").first).to_have_text(re.compile("|".join(generate.CLASSES)))

    plots = job.locator(".plots")
    expect(plots.locator("img")).to_have_count(0)
    plots.get_by_text("Plots").click()
    expect(plots.get_by_role("img", name="Confusion matrix")).to_have_js_property("complete", True)
    expect(plots.get_by_role("img", name="Confusion matrix")).not_to_have_js_property("naturalWidth", 0)
    assert saved(page, plots, "PNG of Confusion matrix").startswith(b"\x89PNG")
    assert b"<svg" in saved(page, plots, "SVG of Confusion matrix")
    numbers = json.loads(saved(page, plots, "Save the numbers as JSON"))
    assert numbers["classes"] == sorted(generate.CLASSES)
    expect(plots.get_by_role("button", name=re.compile("^PNG of "))).to_have_count(plots.locator("img").count())

    confused = plots.get_by_role("list", name="Most often confused").get_by_role("link")
    expect(confused).to_have_count(len(numbers["most_confused"]))
    confused.first.click()
    pair = numbers["most_confused"][0]
    expect(page.get_by_role("status")).to_have_text(f"{pair['count']} pictures")
    expect(page.get_by_label("Model's answer")).to_have_value(numbers["classes"][pair["predicted"]])

    picture = tmp_path / "dropped.jpg"
    picture.write_bytes(pictures.encoded(7, 90, 60))
    go(page, "Try it")
    expect(page.locator("#try-panel .drop")).to_be_visible()
    drop(page, picture)
    result = page.locator(".result")
    expect(result.locator(".verdict")).to_have_text(re.compile("|".join(generate.CLASSES)))
    expect(result.locator(".scores li")).to_have_count(5)
    assert changed_pixels(result) > 1000, "the mask is drawn over the picture"

    torn = tmp_path / "torn.jpg"
    torn.write_bytes(b"\xff\xd8 is how a picture begins")
    page.locator("#try-file").set_input_files([picture, torn])
    tried = page.get_by_role("list", name="Pictures", exact=True).get_by_role("button")
    expect(tried.first).to_have_text(re.compile("|".join(generate.CLASSES)))
    tried.last.click()
    expect(page.locator("#try-panel .problem")).to_be_visible()
    expect(result).to_be_hidden()
    tried.first.click()
    expect(result.locator(".verdict")).to_be_visible()
    expect(page.locator("#try-panel .problem")).to_have_count(0)


def saved(page: Page, place: Locator, button: str) -> bytes:
    """What a save button gives to keep; a key, if the page has one, goes with the request."""
    page.evaluate("sessionStorage.setItem('denll-key', 'a key')")
    with page.expect_request(re.compile("/artifacts/")) as request, page.expect_download() as download:
        place.get_by_role("button", name=button, exact=True).click()
    page.evaluate("sessionStorage.removeItem('denll-key')")
    assert request.value.header_value("authorization") == "Bearer a key"
    assert Path(download.value.suggested_filename).suffix == Path(request.value.url).suffix
    return Path(download.value.path()).read_bytes()


def drop(page: Page, file: Path) -> None:
    """Drop a file on the picture field, as a mouse would."""
    transfer = page.evaluate_handle(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
            return transfer;
        }""",
        [file.name, list(file.read_bytes())],
    )
    page.dispatch_event("#try-panel .drop", "drop", {"dataTransfer": transfer})


def changed_pixels(result: Locator) -> int:
    """How many pixels of the shown picture differ between mask on and off."""

    def seen() -> NDArray[np.uint8]:
        return np.asarray(Image.open(io.BytesIO(result.locator("canvas").screenshot())).convert("RGB"))

    masked = seen()
    result.get_by_text("Off", exact=True).click()
    return int((masked != seen()).any(-1).sum())


@pytest.mark.parametrize("style", ["ellipse", "heat"])
def test_a_mask_is_drawn_where_every_other_form_of_it_lies(page: Page, console: Console, style: str) -> None:
    gaussian, threshold, size = masks.Gaussian(6.0, 5.0, 2.0, 1.5), 0.5, (16, 12)
    drawn = page.evaluate(
        """async ([style, gaussian, threshold, [width, height]]) => {
            const { drawMask } = await import("/static/masks.js");
            const [picture, canvas] = [document.createElement("canvas"), document.createElement("canvas")];
            [picture.width, picture.height] = [width, height];
            picture.getContext("2d").fillStyle = style === "heat" ? "black" : "white";
            picture.getContext("2d").fillRect(0, 0, width, height);
            drawMask(canvas, picture, { gaussian, threshold }, { style, opacity: 1 });
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const light = [...Array(canvas.width * canvas.height).keys()].filter((each) => data[4 * each + 1] > 150);
            const mean = (place) => light.reduce((sum, each) => sum + place(each), 0) / light.length + 0.5;
            const means = [mean((each) => Math.floor(each / canvas.width)), mean((each) => each % canvas.width)];
            return means.map((each) => (each * width) / canvas.width);
        }""",
        [style, vars(gaussian), threshold, size],
    )

    inside = np.argwhere(masks.raster(gaussian, *size, threshold)) + 0.5
    assert drawn == pytest.approx(inside.mean(axis=0).tolist(), abs=0.1)


def test_figures_count_epochs_from_one_and_say_what_is_noisy(page: Page, console: Console) -> None:
    best = {"best_noisy_val": 0.5, "best_noisy_val_epoch": 1}
    measured = {"background_reliance": 0.25, "swapped_accuracy": None, "noisy_swapped_accuracy": 0.5}
    page.evaluate(
        """async (job) => {
            const { figures } = await import("/static/outcome.js");
            document.querySelector("h1").after(figures(job));
        }""",
        {"metrics": {"test_accuracy": best, "epochs": 2, **measured}},
    )
    figures = page.get_by_role("region", name="Figures")
    named = ["Test accuracy, at the best noisy-validation epoch", "Background reliance"]
    expect(figures.locator(".figures dt")).to_have_text([*named, "Noisy accuracy with other backgrounds"])
    expect(figures).to_contain_text("what lies outside the middle (24/32 of the side)")
    expect(figures).to_contain_text("judged by the given labels")
    figures.get_by_text("All figures").click()
    names, values = (figures.locator(f".facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
    every = dict(zip(names, values, strict=True))
    assert (every["Test accuracy, best noisy val epoch"], every["Epochs"]) == ("1", "2")


def test_a_running_job_is_cancelled_and_taken_up_again_from_its_panel(
    page: Page, console: Console, archive: Path
) -> None:
    expect(upload(page, archive, "to be cancelled").locator(".status")).to_have_text("ready")
    job = start(page, "to be cancelled", "never ends", epochs=2000)
    expect(job.locator(".status")).to_have_text("running")
    job.get_by_role("button", name="Cancel").click()
    expect(job.locator(".status")).to_have_text("cancelled")
    job.get_by_role("button", name="Retry from the last checkpoint").click()
    expect(job.locator(".status")).to_have_text("running")
    expect(job.locator(".progress-text")).to_contain_text("images/s")
    job.get_by_role("button", name="Cancel").click()
    expect(job.locator(".status")).to_have_text("cancelled")


def test_a_folder_is_uploaded_as_it_is(page: Page, console: Console, tmp_path: Path) -> None:
    names = ("cat", "Käfer", "a class with a name of more than a hundred bytes " * 3)
    files = {f"{name}/{split}/é{n}.jpg": pictures.encoded(n, hue=n) for n, name in enumerate(names) for split in "ab"}
    for path, data in files.items():
        (tmp_path / "pets" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / path).write_bytes(data)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder instead").click()
    chooser.value.set_files(tmp_path / "pets")
    expect(page.locator("#upload-chosen")).to_have_text("pets.tar")
    page.get_by_role("button", name="Upload", exact=True).click()
    dataset = page.locator(".dataset", has_text="pets")
    expect(dataset.locator(".status")).to_have_text("ready")
    texts = dataset.locator(".class-name").all_inner_texts()
    assert sorted(name.strip() for name in texts) == sorted(name.strip() for name in names)


def test_a_rejected_archive_says_why(page: Page, console: Console, tmp_path: Path) -> None:
    console.expected = {422}
    broken = tmp_path / "notes.zip"
    broken.write_bytes(b"this is no archive")
    upload(page, broken, "notes")
    problem = page.locator("#upload-problem").get_by_role("alert")
    expect(problem).to_contain_text("The archive was rejected")
    expect(problem.locator("p").nth(1)).to_be_visible()
    expect(page.get_by_role("button", name="Upload", exact=True)).to_be_focused()


def test_columns_of_a_refused_table_are_offered(page: Page, console: Console, tmp_path: Path) -> None:
    console.expected = {422}
    files = {f"images/{number}.jpg": pictures.encoded(number) for number in range(4)}
    rows = [f"images/{number}.jpg,{'cd'[number % 2]},{'dc'[number % 2]}" for number in range(4)]
    archive = tmp_path / "photos.zip"
    archive.write_bytes(pictures.zipped({**files, "photos.csv": pictures.table("file,worker,expert", rows)}))
    dataset = upload(page, archive, "photos")
    expect(page.locator("#upload-sample")).to_contain_text("worker: c")
    options = page.locator("#upload-columns option")
    assert options.evaluate_all("(options) => options.map((option) => option.value)") == ["file", "worker", "expert"]

    page.get_by_label("Label column").fill("worker")
    page.get_by_role("button", name="Upload").click()
    expect(dataset.locator(".status")).to_have_text("ready")


def test_columns_of_a_table_that_a_worker_refuses_are_offered_too(page: Page, console: Console, tmp_path: Path) -> None:
    """A long table is read after the answer; the reason also stands on the data set's own page."""
    files = {f"images/{number}.jpg": pictures.encoded(number) for number in range(4)}
    note = "x" * 30_000
    rows = [f"images/{number}.jpg,{'cd'[number % 2]},{'dc'[number % 2]},{note}" for number in range(4)]
    archive = tmp_path / "long.zip"
    archive.write_bytes(pictures.zipped({**files, "photos.csv": pictures.table("file,worker,expert,note", rows)}))
    dataset = upload(page, archive, "long table")
    expect(dataset.locator(".status")).to_have_text("failed")
    expect(page.locator("#upload-sample")).to_contain_text("worker: c")

    dataset.get_by_role("link", name="long table").click()
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("name the one to learn from by label_column")
    expect(problem.get_by_role("listitem")).to_have_count(0)  # the only error says the same


def test_a_value_out_of_bounds_is_said_beside_its_field(page: Page, console: Console, archive: Path) -> None:
    expect(upload(page, archive, "bounds").locator(".status")).to_have_text("ready")
    go(page, "Train")
    epochs = page.locator("#train-form").get_by_label("Epochs")
    epochs.fill("0")
    page.get_by_role("button", name="Start training").click()
    expect(
        page.locator("#train-form .field", has=page.get_by_label("Epochs")).locator(".field-error")
    ).not_to_be_empty()
    expect(epochs).to_be_focused()


def test_every_control_has_a_name_and_nothing_overflows_a_phone(page: Page, console: Console) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    for section, part in (
        ("Data sets", "#upload-button"),
        ("Train", "#train-form .primary"),
        ("Jobs", "#job-list > li"),
        ("Try it", "#try-panel"),
    ):
        go(page, section)
        expect(page.locator(part).first).to_be_visible()
        assert_usable_on_a_phone(page)


def assert_usable_on_a_phone(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, button")]
            .filter((each) => each.checkVisibility())
            .filter((each) => !(each.labels?.length || each.textContent.trim() || each.querySelector("img[alt]")))
            .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_back_forward_and_reload_show_the_view_of_the_address(page: Page, console: Console, service: str) -> None:
    go(page, "Train")
    go(page, "Jobs")
    expect(page).to_have_title("Jobs · DeNLL")
    page.go_back()
    expect(page.get_by_role("heading", name="Train", level=1)).to_be_focused()
    page.go_back()
    expect(page.get_by_role("heading", name="Data sets", level=1)).to_be_focused()
    page.go_forward()
    expect(page).to_have_url(f"{service}/ui/train")
    page.reload()
    expect(page.get_by_role("heading", name="Train", level=1)).to_be_visible()
    expect(page.get_by_role("link", name="Train", exact=True)).to_have_attribute("aria-current", "page")
    page.goto(f"{service}/ui/nothing/here")
    expect(page.get_by_role("heading", level=1)).to_have_text("There is nothing at this address")


@pytest.mark.parametrize("document", ["/docs", "/problems/not-ready"])
def test_documents_have_a_margin(page: Page, console: Console, service: str, document: str) -> None:
    page.goto(service + document)
    box = page.get_by_role("heading", level=1).bounding_box()
    assert box is not None
    assert box["x"] >= 16
