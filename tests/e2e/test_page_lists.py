"""What the page lists and lets choose, in a real browser against an API alone: its rows are written to the database."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import Engine

from app.db import session as db
from app.db.tables import Alias, Dataset, Job, Model, State
from app.settings import Settings
from app.storage import ARTIFACTS, Storage
from ml.formats import image_results
from ml.formats.image_results import ImageResult
from tests import pictures
from tests.e2e.conftest import Console, launched
from tests.tables import create_tables

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROWS = 130
REFRESH = "document.dispatchEvent(new Event('visibilitychange'))"  # as when the user comes back to the page


@pytest.fixture
def engine(chromium: str, tmp_path: Path) -> Iterator[Engine]:
    """The database of the API."""
    engine = db.connect(Settings(data_dir=tmp_path))
    create_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def api(engine: Engine, tmp_path: Path) -> Iterator[str]:
    with launched(tmp_path, "app.main") as url:
        yield url


@pytest.fixture
def console(page: Page) -> Iterator[Console]:
    console = Console(page)
    yield console
    assert console.errors == []


def add_dataset(engine: Engine, name: str, *, ready: bool = True) -> str:
    """A data set as ingest leaves it, without its files."""
    row = Dataset(id=uuid.uuid4(), name=name, upload={}, state=State.succeeded if ready else State.queued)
    row.facts = {"train_images": 500, "test_images": 20, "classes": ["cat", "dog"], "image_size": 32} if ready else None
    with db.transaction(engine) as session:
        session.add(row)
        return str(row.id)


def add_job(engine: Engine, dataset_id: str, name: str, state: State = State.succeeded) -> str:
    row = Job(id=uuid.uuid4(), dataset_id=uuid.UUID(dataset_id), name=name, state=state)
    row.request, row.spec, row.metrics = {"method": "ce"}, {}, {"label_issues": 3}
    with db.transaction(engine) as session:
        session.add(row)
        return str(row.id)


def add_model(engine: Engine, name: str) -> None:
    facts = {"method": "ce", "network": "small", "classes": ["cat", "dog"], "digest": "sha256:0", "size_bytes": 1}
    with db.transaction(engine) as session:
        session.add(Model(id=uuid.uuid4(), name=name, metrics={}, spec={}, **facts))


def write_ranking(files: Storage, job_id: str) -> None:
    folder = files.attempt(uuid.UUID(job_id), 1) / ARTIFACTS
    folder.mkdir(parents=True)
    rows = [ImageResult(n, f"{n}.png", "train", 0, False, 1, 1, n / ROWS, n < 3) for n in range(ROWS)]
    image_results.write(folder / image_results.FILE_NAME, ["cat", "dog"], rows)


def show_all(rows: Locator, more: Locator) -> None:
    """Ask for more rows until there are no others."""
    while more.is_visible():
        before = rows.count()
        more.click()
        expect(rows).not_to_have_count(before)


def test_every_row_can_be_reached_however_many_there_are(
    page: Page, console: Console, engine: Engine, api: str, tmp_path: Path
) -> None:
    sets = [add_dataset(engine, f"set {number}") for number in range(ROWS)]
    jobs = [add_job(engine, sets[0], f"job {number}") for number in range(ROWS)]
    for number in range(ROWS + 100):  # more than one page of the service
        add_model(engine, f"model {number}")
    write_ranking(Storage(tmp_path), jobs[0])
    console.expected = {404}  # the job has no other artifacts
    page.route("**/thumbnail", lambda route: route.fulfill(body=pictures.encoded(0), content_type="image/jpeg"))

    for name in ("dataset", "job"):
        page.goto(f"{api}/ui/{name}s")
        rows = page.locator(f"#{name}-list > li")
        expect(rows).to_have_count(20)
        show_all(rows, page.locator(f"#{name}s-more"))
        expect(rows).to_have_count(ROWS)
        page.evaluate(REFRESH)  # and they stay
        expect(page.locator(f"#{name}-list")).to_contain_text(f"{'set' if name == 'dataset' else 'job'} 0")

    page.locator(".job", has_text="job 0").get_by_role("link").click()
    job = page.locator(".view.job", has_text="job 0")
    cards = job.locator(".gallery li")
    expect(cards).to_have_count(24)
    show_all(cards, job.get_by_role("button", name="Show more"))
    expect(cards).to_have_count(ROWS)

    page.goto(f"{api}/ui/train")
    expect(page.locator("#train-dataset option")).to_have_count(ROWS)
    page.goto(f"{api}/ui/predict")
    expect(page.locator("#try-model option")).to_have_count(1 + ROWS + 100)


def test_of_two_hundred_trainings_one_is_found_to_compare_and_each_says_what_it_is(
    page: Page, console: Console, engine: Engine, api: str
) -> None:
    dataset = add_dataset(engine, "steel")
    for number in range(200):
        add_job(engine, dataset, f"experiment {number:03}")
    page.goto(f"{api}/ui/compare")
    rows = page.locator(".chooser .row")
    expect(rows).to_have_count(200)
    expect(rows.first).to_contain_text("Cross-entropy on steel")
    page.get_by_label("Find a training").fill("experiment 11")
    expect(rows).to_have_count(10)


def test_the_focus_stays_in_the_view_when_what_had_it_leaves(
    page: Page, console: Console, engine: Engine, api: str
) -> None:
    add_job(engine, add_dataset(engine, "steel"), "waits", State.queued)
    page.goto(f"{api}/ui/queue")
    cancel = page.get_by_role("button", name="Cancel")
    cancel.focus()
    page.keyboard.press("Enter")
    expect(cancel).to_have_count(0)
    expect(page.get_by_role("heading", level=1)).to_be_focused()


def test_the_chosen_data_set_stays_chosen_when_another_upload_ends(
    page: Page, console: Console, engine: Engine, api: str
) -> None:
    console.expected = {404}  # the dry run of a data set that is deleted meanwhile
    chosen = add_dataset(engine, "mine")
    page.goto(f"{api}/ui/train")
    picker = page.get_by_label("Data set", exact=True)
    selected = picker.locator("option:checked")
    expect(selected).to_have_text("mine")

    theirs = add_dataset(engine, "theirs")
    page.evaluate(REFRESH)
    expect(picker.locator("option")).to_have_text(["theirs", "mine"])
    expect(selected).to_have_text("mine")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator(".job")).to_have_count(1)
    (job,) = httpx2.get(f"{api}/jobs").json()["items"]
    assert job["dataset_id"] == chosen

    page.get_by_role("link", name="Data sets").click()
    row = page.locator(".dataset", has_text="theirs")
    row.get_by_role("link", name="Train on it").click()
    expect(selected).to_have_text("theirs")
    assert httpx2.delete(f"{api}/datasets/{theirs}").status_code == 204
    page.evaluate(REFRESH)
    expect(selected).to_have_text("Choose a data set")
    expect(page.get_by_role("button", name="Start training")).to_be_disabled()


def test_the_style_shown_as_chosen_is_the_one_that_is_drawn(page: Page, console: Console, api: str) -> None:
    page.goto(f"{api}/ui/predict")
    expect(page.locator("#try-panel")).to_be_visible()
    page.evaluate(
        """async () => {
            const { predictionView } = await import("/static/prediction.js");
            const view = predictionView();
            const picture = document.createElement("canvas");
            [picture.width, picture.height] = [16, 12];
            document.getElementById("try-panel").after(view.element);
            const prediction = (mask) => ({ label: "cat", score: 1, top_k: [], mask });
            window.draw = (mask) => view.draw(prediction(mask), picture, {}, "a picture");
        }"""
    )
    styles = page.get_by_role("group", name="Mask")
    map_ = {"values": [[0, 1], [1, 0]], "square": [0, 0, 16, 12], "area_fraction": 0.5}
    both = {"gaussian": {"cx": 8, "cy": 6, "sigma_x": 2, "sigma_y": 2}, "area_fraction": 0.1, "map": map_}

    page.evaluate("(mask) => draw(mask)", {"map": map_})
    expect(styles.get_by_role("radio", name="Map")).to_be_checked()
    expect(styles.get_by_role("radio")).to_have_count(2)  # a map, or off
    page.evaluate("(mask) => draw(mask)", both)
    expect(styles.get_by_role("radio", name="Ellipse")).to_be_checked()
    expect(styles.get_by_role("radio")).to_have_count(4)
    styles.get_by_text("Heat").click()
    page.evaluate("(mask) => draw(mask)", {"map": map_})
    expect(styles.get_by_role("radio", name="Map")).to_be_checked()
    page.evaluate("(mask) => draw(mask)", both)
    expect(styles.get_by_role("radio", name="Heat")).to_be_checked()


def test_a_changed_key_leaves_one_form_that_starts_one_job(
    page: Page, console: Console, engine: Engine, api: str
) -> None:
    add_dataset(engine, "mine")
    submitted: list[str] = []
    page.on("request", lambda sent: submitted.append(sent.url) if sent.method == "POST" else None)
    page.goto(f"{api}/ui/train")
    selected = page.get_by_label("Data set", exact=True).locator("option:checked")
    expect(selected).to_have_text("mine")
    change = "keys.dispatchEvent(new Event('key-changed'))"
    page.evaluate(f"import('/static/api.js').then(({{ keys }}) => {{ {change}; {change}; }})")
    expect(selected).to_have_text("mine")
    page.get_by_role("button", name="Start training").click()
    expect(page).to_have_url(re.compile("/ui/jobs/"))
    page.goto(f"{api}/ui/jobs")
    expect(page.locator("#job-list > li")).to_have_count(1)

    assert [url for url in submitted if url.endswith("/jobs")] == [f"{api}/jobs"]


def test_the_test_pictures_are_those_of_the_model_behind_default(
    page: Page, console: Console, engine: Engine, api: str
) -> None:
    """It is pinned to the older of two models of different data sets."""
    sets = [uuid.UUID(add_dataset(engine, name)) for name in ("older", "newer")]
    facts = {"method": "ce", "network": "small", "classes": ["cat", "dog"], "digest": "sha256:0", "size_bytes": 1}
    models = [uuid.uuid4() for _ in sets]
    for model, dataset in zip(models, sets, strict=True):
        with db.transaction(engine) as session:
            session.add(Model(id=model, dataset_id=dataset, name="m", metrics={}, spec={}, **facts))
    with db.transaction(engine) as session:
        session.add(Alias(name="default", model_id=models[0]))
    console.expected = {500, 503}  # the data sets have no files
    with page.expect_request("**/images?split=test*") as first:
        page.goto(f"{api}/ui/predict")

    assert str(sets[0]) in first.value.url
