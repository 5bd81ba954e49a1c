"""A person logs in through the provider's form in a real browser, changes something on the page, and logs out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests import oidc, pictures, servers
from tests.e2e.conftest import ROOT, Console, launched

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PEOPLE = (
    {"sub": "ada", "name": "Ada Lovelace", "groups": ["labellers"]},
    {"sub": "eve", "name": "Eve", "groups": ["guests"]},
)


@pytest.fixture(scope="module")
def with_login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an API at which people log in. Nothing else of the service runs."""
    data = tmp_path_factory.mktemp("login")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DENLL_")}
    environment["DENLL_DATA_DIR"] = str(data)
    subprocess.run([sys.executable, "-m", "migrations"], cwd=ROOT, env=environment, check=True)
    port = str(servers.free_port())
    with (
        oidc.installed_provider(*PEOPLE) as issuer,
        launched(
            data,
            "app.main",
            DENLL_PORT=port,
            DENLL_ADMIN_KEY="a-key-for-the-login",
            DENLL_PUBLIC_URL=f"http://127.0.0.1:{port}",
            DENLL_OIDC_ISSUER=issuer,
            DENLL_OIDC_CLIENT_ID=oidc.CLIENT_ID,
            DENLL_OIDC_CLIENT_SECRET=oidc.CLIENT_SECRET,
            DENLL_LOGIN_SCOPES=json.dumps({"labellers": ["read", "train", "predict"]}),
        ) as url,
    ):
        yield url


def log_in(page: Page, sub: str) -> None:
    """From the page, through the provider's form, without the style sheet that it has from elsewhere."""
    page.route("https://**", lambda route: route.abort())
    page.get_by_role("link", name="Log in").click()
    expect(page.get_by_role("heading", name="Authorize Client")).to_be_visible()
    page.get_by_placeholder("sub").fill(sub)
    page.get_by_role("button", name="Authorize", exact=True).click()


def test_a_person_logs_in_uploads_and_logs_out(page: Page, with_login: str, tmp_path: Path) -> None:
    archive = tmp_path / "pets.zip"
    archive.write_bytes(pictures.zipped(pictures.class_folders(per_class=2, side=24)))
    page.goto(with_login)
    log_in(page, "ada")
    expect(page.locator("#person")).to_have_text("Ada Lovelace")
    console = Console(page)  # what it says from here on is ours
    page.reload()
    expect(page.locator("#person")).to_have_text("Ada Lovelace")
    expect(page.locator("#key-form")).to_be_hidden()
    expect(page.get_by_role("link", name="Log in")).to_be_hidden()

    page.get_by_label("Choose an archive").set_input_files(archive)
    page.get_by_label("Name", exact=True).first.fill("pets of Ada")
    page.get_by_role("button", name="Upload").click()
    expect(page.locator(".dataset", has_text="pets of Ada")).to_be_visible()
    assert console.errors == []

    console.expected = {401}  # without a session the page learns that it needs one
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("link", name="Log in")).to_be_visible()
    expect(page.locator("#person")).to_be_hidden()
    expect(page.locator("#key-form")).to_be_visible()
    assert page.context.cookies(with_login) == []
    assert console.errors == []


def test_who_has_no_access_reads_why(page: Page, with_login: str) -> None:
    page.goto(with_login)
    log_in(page, "eve")
    expect(page.get_by_role("heading", name="This account has no access")).to_be_visible()
    expect(page.get_by_text("eve is in no group")).to_be_visible()
    page.get_by_role("link", name="Log in again").click()
    expect(page.get_by_role("heading", name="Authorize Client")).to_be_visible()
