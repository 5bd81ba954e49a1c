"""People log in at a provider: the whole way through real ones, every fault of a token, and what a session may do."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from joserfc.jwk import ECKey, Key, OctKey, RSAKey
from pydantic import ValidationError
from sqlalchemy import func, select, text, update

from app import backup, retention
from app.db import session as db
from app.db.clock import now
from app.db.tables import ApiKey, LoginSession, PendingLogin
from app.http import callers
from app.login import refresh_token
from app.settings import Settings, without_secrets
from tests import oidc
from tests.app.conftest import ADDRESS, ADMIN, BOTH, Client, bearer, ingest_it, upload
from tests.oidc import SigningProvider
from tests.servers import eventually, free_port

HTML = {"Accept": "text/html,application/xhtml+xml"}
ADA = {"sub": "ada", "name": "Ada Lovelace", "groups": ["labellers", "staff"]}
GRACE = {"sub": "grace", "name": "Grace Hopper", "groups": ["ml-admins"]}
EVE = {"sub": "eve", "name": "Eve", "groups": ["guests"]}
SCOPES = {"labellers": ["read", "train"], "ml-admins": ["admin"]}
LOGIN = {
    "admin_key": ADMIN,
    "oidc_client_id": oidc.CLIENT_ID,
    "oidc_client_secret": oidc.CLIENT_SECRET,
    "public_url": ADDRESS,
    "login_scopes": SCOPES,
    "address_requests_per_s": 0.0,
    "oidc_timeout_s": 7.0,  # the provider shares the cores with other tests
}


@pytest.fixture(scope="module")
def installed() -> Iterator[str]:
    """The issuer of a provider that comes from a registry."""
    with oidc.installed_provider(ADA, GRACE, EVE) as issuer:
        yield issuer


@pytest.fixture
def provider() -> Iterator[SigningProvider]:
    with SigningProvider() as provider:
        yield provider


@pytest.fixture
def start(with_settings: Callable[..., Client], provider: SigningProvider) -> Callable[..., Client]:
    """An application whose provider is the test's own."""
    return lambda **changed: with_settings(**{**LOGIN, "oidc_issuer": provider.issuer, **changed})


def begin(client: Client, **query: str) -> str:
    """The address that /login sends the browser to."""
    answer = client.get("/login", params=query, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


def answer_of(location: str, **form: str) -> str:
    """Fill in the form of the installed provider: the address that it sends the browser back to."""
    answer = httpx2.post(location, data=form, follow_redirects=False)
    assert answer.status_code == 302, answer.text
    return str(answer.headers["location"])


def return_with(client: Client, location: str, **headers: str) -> Any:
    return client.get(location.removeprefix(ADDRESS), headers=headers, follow_redirects=False)


def log_in(client: Client, sub: str = "ada", **query: str) -> Any:
    """Through the installed provider."""
    return return_with(client, answer_of(begin(client, **query), sub=sub))


def sign_in(client: Client, provider: SigningProvider) -> Any:
    """Through the test's own provider."""
    return return_with(client, provider.authorize(begin(client)))


def csrf(client: Client) -> dict[str, str]:
    return {"X-CSRF-Token": client.get("/session").json()["csrf_token"]}


def sessions(client: Client) -> int:
    with db.transaction(client.app.state.engine, read_only=True) as session:  # type: ignore[attr-defined]
        return session.scalar(select(func.count()).select_from(LoginSession)) or 0


def problem_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].rpartition("/")[2]


# --- The whole way ----------------------------------------------------------------------------------------------------


@BOTH
def test_SEC12_a_person_logs_in_and_may_do_what_their_groups_give(
    with_settings: Callable[..., Client], installed: str
) -> None:
    client = with_settings(**LOGIN, oidc_issuer=installed)
    assert problem_of(client.get("/session")) == (401, "unauthenticated")
    finished = log_in(client, next="/?tab=1#jobs")
    assert (finished.status_code, finished.headers["location"]) == (303, f"{ADDRESS}/?tab=1#jobs")

    session = client.get("/session")
    assert session.headers["cache-control"] == "no-store"
    assert (session.json()["name"], session.json()["subject"]) == ("Ada Lovelace", "ada")
    assert session.json()["scopes"] == ["read", "train"]
    assert client.get("/jobs").status_code == 200
    assert client.post("/jobs", json={}, headers=csrf(client)).status_code == 422
    assert problem_of(client.get("/keys")) == (403, "forbidden")
    assert problem_of(client.get("/predict?image=data:x")) == (403, "forbidden")
    (entry,) = client.get("/audit", headers=bearer(ADMIN)).json()["items"]
    assert (entry["action"], entry["actor"]) == ("session.begin", "Ada Lovelace (ada)")
    assert entry["key_id"] == session.json()["person_id"]


@BOTH
def test_who_is_in_no_group_is_told_so_and_has_no_session(with_settings: Callable[..., Client], installed: str) -> None:
    client = with_settings(**LOGIN, oidc_issuer=installed)
    refused = log_in(client, "eve")
    assert problem_of(refused) == (403, "no-access")
    assert "eve is in no group" in refused.json()["detail"]
    assert "set-cookie" not in refused.headers
    assert sessions(client) == 0
    assert client.get("/session").status_code == 401


def test_a_login_that_is_cancelled_at_the_provider_is_a_403(
    with_settings: Callable[..., Client], installed: str
) -> None:
    client = with_settings(**LOGIN, oidc_issuer=installed)
    location = begin(client)
    state = parse_qs(urlsplit(location).query)["state"][0]
    denied = answer_of(location, action="deny")
    separator = "&" if "?" in denied else "?"
    with_state = denied if "state=" in denied else f"{denied}{separator}state={state}"  # this provider leaves it out
    assert problem_of(return_with(client, with_state)) == (403, "login-denied")
    assert sessions(client) == 0


def test_a_problem_of_a_login_is_a_page_where_a_browser_shows_it(
    with_settings: Callable[..., Client], installed: str
) -> None:
    client = with_settings(**LOGIN, oidc_issuer=installed)
    location = answer_of(begin(client), sub="eve")
    page = super(Client, client).request("GET", location.removeprefix(ADDRESS), headers=HTML)
    assert (page.status_code, page.headers["content-type"]) == (403, "text/html; charset=utf-8")
    assert "eve is in no group" in page.text
    assert 'href="/login"' in page.text
    assert "form-action 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"


def test_everybody_may_have_scopes_without_a_group(with_settings: Callable[..., Client], installed: str) -> None:
    client = with_settings(**LOGIN, oidc_issuer=installed, login_default_scopes=["predict"])
    assert log_in(client, "eve").status_code == 303
    assert client.get("/session").json()["scopes"] == ["predict"]
    log_in(client, "ada")
    assert client.get("/session").json()["scopes"] == ["predict", "read", "train"]


def test_without_an_issuer_nothing_changes(guarded: Client, client: Client) -> None:
    for path in ("/login", "/login/callback", "/session"):
        assert problem_of(guarded.get(path)) == (404, "not-found")
        assert problem_of(client.get(path)) == (404, "not-found")
    assert client.get("/jobs", headers={"Cookie": "denll-session=" + "a" * 43}).status_code == 200
    assert guarded.get("/jobs", headers={"Cookie": "denll-session=" + "a" * 43}).status_code == 401
    assert guarded.get("/jobs", headers=bearer(ADMIN)).status_code == 200
    assert "/login" not in guarded.get("/openapi.json").json()["paths"]
    assert b"data-login" not in guarded.get("/").content


def test_the_document_names_the_cookie_and_the_page_offers_the_login(start: Callable[..., Client]) -> None:
    client = start()
    document = client.get("/openapi.json").json()
    scheme = document["components"]["securitySchemes"]["session"]
    assert (scheme["in"], scheme["name"]) == ("cookie", "denll-session")
    assert document["paths"]["/jobs"]["post"]["security"] == [{"key": []}, {"session": []}]
    assert document["paths"]["/session"]["get"]["security"] == [{"session": []}]
    for path, method in (("/login", "get"), ("/login/callback", "get"), ("/livez", "get"), ("/uploads", "options")):
        assert "security" not in document["paths"][path][method], path
    assert b"<body data-login>" in client.get("/").content


# --- Answers that count in one browser, once --------------------------------------------------------------------------


@BOTH
def test_SEC12_an_answer_counts_once(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start()
    location = provider.authorize(begin(client))
    cookie = client.cookies["denll-login"]
    assert return_with(client, location).status_code == 303
    client.cookies.set("denll-login", cookie)  # a browser that did not forget it
    before = len(provider.requests)
    replayed = return_with(client, location)
    assert problem_of(replayed) == (400, "login-expired")
    assert len(provider.requests) == before, "the provider is not even asked"
    assert sessions(client) == 1


@pytest.mark.parametrize("state", ["", "x", "a" * 64, "\xff", None])
def test_SEC12_an_answer_with_another_state_is_refused_and_the_login_can_still_end(
    start: Callable[..., Client], provider: SigningProvider, state: str | None
) -> None:
    client = start()
    location = provider.authorize(begin(client))
    code = parse_qs(urlsplit(location).query)["code"][0]
    query = {"code": code} | ({"state": state} if state is not None else {})
    assert problem_of(client.get("/login/callback", params=query)) == (400, "login-expired")
    assert return_with(client, location).status_code == 303


def test_SEC12_an_answer_for_another_browser_is_refused(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    """Login CSRF: somebody lures a browser into the session of another person."""
    client = start()
    location = provider.authorize(begin(client))
    of_the_other = client.cookies["denll-login"]
    client.cookies.clear()
    assert problem_of(return_with(client, location)) == (400, "login-expired")
    begin(client)
    assert client.cookies["denll-login"] != of_the_other
    assert problem_of(return_with(client, location)) == (400, "login-expired")
    both = f"denll-login={of_the_other}; denll-login={client.cookies['denll-login']}"
    client.cookies.clear()
    assert problem_of(return_with(client, location, Cookie=both)) == (400, "login-expired")


@BOTH
def test_a_login_that_took_too_long_is_refused(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start()
    location = provider.authorize(begin(client))
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.execute(update(PendingLogin).values(expires_at=now(-1.0)))
    assert problem_of(return_with(client, location)) == (400, "login-expired")


def test_nothing_that_is_stored_or_sent_tells_the_secret_of_a_login(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start()
    location = begin(client)
    query = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
    secret = client.cookies["denll-login"]
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        stored = str(session.execute(text("select * from pending_login")).all())
    assert not {secret, query["state"], query["nonce"]} & set(stored.split("'"))
    assert secret not in location
    assert len({secret, query["state"], query["nonce"], query["code_challenge"]}) == 4


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "///evil.example",
        "javascript:alert(1)",
        "evil.example",
        "",
        " //evil.example",
        "/a\r\nSet-Cookie: x=y",
        "/login",
        "/login/callback",
        "/é",
        "/" + "a" * 500,
        "/a\0",
    ],
)
def test_SEC12_a_login_never_leads_to_another_site(start: Callable[..., Client], path: str) -> None:
    answer = start().get("/login", params={"next": path}, follow_redirects=False)
    assert answer.status_code == 422
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/%2F%2Fevil.example", "/%5Cevil.example", "/.//evil.example", "/?a=b#c"]
)
def test_a_login_leads_back_to_our_own_host(start: Callable[..., Client], provider: SigningProvider, path: str) -> None:
    client = start()
    finished = return_with(client, provider.authorize(begin(client, next=path)))
    assert finished.headers["location"] == ADDRESS + path
    assert urlsplit(finished.headers["location"]).netloc == urlsplit(ADDRESS).netloc


# --- ID tokens --------------------------------------------------------------------------------------------------------

FAULTS: dict[str, dict[str, Any]] = {
    "another nonce": {"nonce": "x"},
    "no nonce": {"nonce": None},
    "a list of nonces": {"nonce": ["x"]},
    "another audience": {"aud": "another"},
    "no audience": {"aud": None},
    "several audiences, asked for by nobody": {"aud": [oidc.CLIENT_ID, "another"]},
    "several audiences, asked for by another": {"aud": [oidc.CLIENT_ID, "another"], "azp": "another"},
    "asked for by another": {"azp": "another"},
    "another issuer": {"iss": "https://evil.example"},
    "no issuer": {"iss": None},
    "expired": {"exp": int(time.time()) - 3600},
    "no end": {"exp": None},
    "an end that is no number": {"exp": "tomorrow"},
    "an end that is not finite": {"exp": float("inf")},
    "from the future": {"iat": int(time.time()) + 3600},
    "not valid yet": {"nbf": int(time.time()) + 3600},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a long subject": {"sub": "a" * 256},
    "a subject that is no text": {"sub": 5},
    "a subject with control characters": {"sub": "a\nb"},
}


@pytest.mark.parametrize("claims", FAULTS.values(), ids=FAULTS)
def test_SEC12_a_token_with_a_fault_begins_no_session(
    start: Callable[..., Client], provider: SigningProvider, claims: dict[str, Any]
) -> None:
    client = start()
    provider.claims = claims
    refused = sign_in(client, provider)
    assert problem_of(refused) == (403, "login-not-verified")
    assert "set-cookie" not in refused.headers
    assert sessions(client) == 0


def stranger(provider: SigningProvider) -> None:
    """Another key under the name of the published one."""
    provider.key = RSAKey.generate_key(2048, {"kid": "first"}, private=True)


def nobody(provider: SigningProvider) -> None:
    provider.header = {"alg": "none"}


def confused(provider: SigningProvider) -> None:
    """The published key is taken for the secret of an HMAC."""
    provider.hmac_secret, provider.header = provider.key.as_pem(private=False), {"alg": "HS256"}  # type: ignore[union-attr]


def shared(provider: SigningProvider) -> None:
    """The client's secret signs, and stands among the published keys."""
    provider.hmac_secret, provider.header = oidc.CLIENT_SECRET.encode() * 2, {"alg": "HS256"}
    provider.published = [OctKey.import_key(provider.hmac_secret, {"kid": "first"}), provider.key]


def unnamed(provider: SigningProvider) -> None:
    """Two keys are published, and the token does not say which has signed it."""
    provider.published = [provider.key, RSAKey.generate_key(2048, {"kid": "second"}, private=True)]
    provider.header = {"kid": None}


def not_json(provider: SigningProvider) -> None:
    provider.answer = lambda path: (200, {}, b'{"id_token": "a.b.c"}') if path == "/token" else None


def without_token(provider: SigningProvider) -> None:
    provider.answer = lambda path: (200, {}, b'{"access_token": "a"}') if path == "/token" else None


@pytest.mark.parametrize("spoil", [stranger, nobody, confused, shared, unnamed, not_json, without_token])
def test_SEC12_a_token_that_the_provider_has_not_signed_begins_no_session(
    start: Callable[..., Client], provider: SigningProvider, spoil: Callable[[SigningProvider], None]
) -> None:
    client = start()
    spoil(provider)
    assert problem_of(sign_in(client, provider)) == (403, "login-not-verified")
    assert sessions(client) == 0


@pytest.mark.parametrize(
    ("key", "header"),
    [
        (RSAKey.generate_key(2048, {"kid": "second"}, private=True), {}),
        (RSAKey.generate_key(2048, {"kid": "second"}, private=True), {"alg": "PS256"}),
        (ECKey.generate_key("P-256", {"kid": "second"}, private=True), {"alg": "ES256"}),
    ],
)
def test_a_provider_may_change_its_keys(
    start: Callable[..., Client], provider: SigningProvider, key: Key, header: dict[str, Any]
) -> None:
    client = start()
    assert sign_in(client, provider).status_code == 303
    assert sign_in(client, provider).status_code == 303
    assert provider.requests.count("/jwks") == 1
    provider.key, provider.header = key, header
    provider.published = [*provider.published, key]
    assert sign_in(client, provider).status_code == 303
    assert sign_in(client, provider).status_code == 303
    assert provider.requests.count("/jwks") == 2
    assert provider.requests.count("/.well-known/openid-configuration") == 1


def test_clocks_may_differ_a_little(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start(oidc_leeway_s=30)
    now_s = int(time.time())
    provider.claims = {"exp": now_s - 15, "iat": now_s + 15}
    assert sign_in(client, provider).status_code == 303


def test_the_audience_may_be_a_list_that_names_who_asked(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start()
    provider.claims = {"aud": [oidc.CLIENT_ID, "another"], "azp": oidc.CLIENT_ID}
    assert sign_in(client, provider).status_code == 303


@pytest.mark.parametrize(
    ("secret", "by_post"), [(oidc.CLIENT_SECRET, False), (oidc.CLIENT_SECRET, True), (None, False)]
)
def test_the_client_says_who_it_is_as_the_provider_demands(
    start: Callable[..., Client], provider: SigningProvider, secret: str | None, by_post: bool
) -> None:
    client = start(oidc_client_secret=secret)
    provider.secret, provider.by_post = secret, by_post
    assert sign_in(client, provider).status_code == 303


def test_a_code_that_the_provider_refuses_begins_no_session(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start(oidc_client_secret="a wrong one")
    assert problem_of(sign_in(client, provider)) == (403, "login-denied")
    assert sessions(client) == 0


# --- Scopes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "claims", "scopes"),
    [
        ("groups", {"groups": "labellers"}, ["read", "train"]),
        ("groups", {"groups": ["x", 5, None, "ml-admins", "labellers"]}, ["admin", "read", "train"]),
        ("realm_access.roles", {"realm_access": {"roles": ["labellers"]}}, ["read", "train"]),
        ("https://a.example/roles", {"https://a.example/roles": ["ml-admins"]}, ["admin"]),
        ("groups", {"groups": {"labellers": True}}, None),
        ("groups", {"groups": []}, None),
        ("groups", {"groups": ["Labellers", "labellers "]}, None),
        ("groups.labellers", {"groups": ["labellers"]}, None),
    ],
)
def test_the_claim_decides_what_a_person_may_do(
    start: Callable[..., Client],
    provider: SigningProvider,
    claim: str,
    claims: dict[str, Any],
    scopes: list[str] | None,
) -> None:
    client = start(login_claim=claim)
    provider.claims = {"groups": None, **claims}
    provider.userinfo = {"sub": "ada"}
    finished = sign_in(client, provider)
    if scopes is None:
        assert problem_of(finished) == (403, "no-access")
    else:
        assert client.get("/session").json()["scopes"] == scopes


def test_the_claim_may_stand_in_the_userinfo_of_the_same_person_alone(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start()
    provider.claims = {"groups": None}
    provider.userinfo = {"sub": "grace", "groups": ["ml-admins"]}
    assert problem_of(sign_in(client, provider)) == (403, "login-not-verified")
    provider.userinfo = {"sub": "ada", "groups": ["ml-admins"], "iss": "x", "name": "Somebody"}
    assert sign_in(client, provider).status_code == 303
    session = client.get("/session").json()
    assert (session["scopes"], session["name"]) == (["admin"], "Ada")


def test_an_answer_that_names_another_provider_is_refused(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start()
    assert problem_of(return_with(client, f"{provider.authorize(begin(client))}&iss=https://evil.example")) == (
        403,
        "login-not-verified",
    )
    assert (
        return_with(client, f"{provider.authorize(begin(client))}&iss={provider.issuer}&session_state=1").status_code
        == 303
    )
    client = start()
    provider.metadata = {"authorization_response_iss_parameter_supported": True}
    assert problem_of(sign_in(client, provider)) == (403, "login-not-verified")


@BOTH
def test_who_loses_a_scope_loses_all_sessions_at_the_next_login(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    """Until then a session may do what it could when it began."""
    client = start()
    sign_in(client, provider)
    of_before = client.cookies["denll-session"]
    client.cookies.clear()
    sign_in(client, provider)
    assert sessions(client) == 2
    provider.claims = {"groups": ["ml-admins"]}
    assert client.get("/jobs").status_code == 200
    client.cookies.clear()
    sign_in(client, provider)
    assert sessions(client) == 1
    assert client.get("/keys").status_code == 200
    client.cookies.clear()
    assert client.get("/jobs", headers={"Cookie": f"denll-session={of_before}"}).status_code == 401
    provider.claims = {"groups": []}
    assert problem_of(sign_in(client, provider)) == (403, "no-access")
    assert sessions(client) == 0


# --- A provider that fails --------------------------------------------------------------------------------------------


def test_a_provider_that_is_away_stops_logins_alone(
    with_settings: Callable[..., Client], provider: SigningProvider
) -> None:
    client = with_settings(**LOGIN, oidc_issuer=f"http://127.0.0.1:{free_port()}")
    for _ in range(2):
        refused = client.get("/login", follow_redirects=False)
        assert problem_of(refused) == (503, "login-unavailable")
        assert int(refused.headers["retry-after"]) > 0
    assert client.get("/livez").status_code == 200
    assert client.get("/jobs", headers=bearer(ADMIN)).status_code == 200


def test_a_session_outlives_its_provider(start: Callable[..., Client]) -> None:
    with SigningProvider() as short_lived:
        client = start(oidc_issuer=short_lived.issuer)
        sign_in(client, short_lived)
        location = short_lived.authorize(begin(client))
    assert client.get("/jobs").status_code == 200
    assert problem_of(return_with(client, location)) == (503, "login-unavailable")
    assert client.get("/jobs").status_code == 200


DISCOVERY = "/.well-known/openid-configuration"
BAD_ANSWERS: dict[str, tuple[str, tuple[int, dict[str, str], bytes]]] = {
    "no JSON": (DISCOVERY, (200, {}, b"<html>")),
    "a list": (DISCOVERY, (200, {}, b"[]")),
    "deep JSON": (DISCOVERY, (200, {}, b"[" * 100_000)),
    "no UTF-8": (DISCOVERY, (200, {}, b'{"issuer": "\xff"}')),
    "an error": (DISCOVERY, (500, {}, b"{}")),
    "a redirect": (DISCOVERY, (302, {"Location": "file:///etc/passwd"}, b"")),
    "too much": (DISCOVERY, (200, {}, b" " * 600_000)),
    "another issuer": (DISCOVERY, (200, {}, b'{"issuer": "https://evil.example"}')),
    "no keys": ("/jwks", (200, {}, b'{"keys": []}')),
    "no list of keys": ("/jwks", (200, {}, b'{"keys": 5}')),
    "keys that are none": ("/jwks", (200, {}, b'{"keys": [5, {}, {"kty": "RSA"}, {"kty": 5}]}')),
    "no tokens": ("/token", (500, {}, b"{}")),
    "tokens elsewhere": ("/token", (307, {"Location": "https://evil.example/"}, b"")),
}


@pytest.mark.parametrize(("path", "answer"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_INV8_a_provider_that_answers_wrongly_is_a_503(
    start: Callable[..., Client],
    provider: SigningProvider,
    path: str,
    answer: tuple[int, dict[str, str], bytes],
) -> None:
    client = start()
    provider.answer = lambda requested: answer if requested == path else None
    refused = client.get("/login", follow_redirects=False) if path == DISCOVERY else sign_in(client, provider)
    assert problem_of(refused) == (503, "login-unavailable")
    assert sessions(client) == 0
    provider.answer = lambda requested: None
    assert sign_in(client, provider).status_code == 303, "it recovers by itself"


def test_a_provider_that_hangs_is_waited_for_a_bounded_time(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start(oidc_timeout_s=0.3)
    answered = threading.Event()
    provider.answer = lambda path: (200, {}, b"{}") if answered.wait(60.0) else None
    started = time.monotonic()
    assert problem_of(client.get("/login", follow_redirects=False)) == (503, "login-unavailable")
    took_s = time.monotonic() - started
    answered.set()
    assert 0.25 < took_s < 30.0


@pytest.mark.parametrize("endpoint", ["authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"])
@pytest.mark.parametrize("value", ["file:///etc/passwd", "javascript:alert(1)", 5, "//evil.example/"])
def test_an_endpoint_that_is_no_web_address_is_refused(
    start: Callable[..., Client], provider: SigningProvider, endpoint: str, value: object
) -> None:
    client = start()
    provider.metadata = {endpoint: value}
    assert problem_of(client.get("/login", follow_redirects=False)) == (503, "login-unavailable")


# --- Sessions ---------------------------------------------------------------------------------------------------------


def cookie_of(answer: Any, name: str) -> dict[str, str]:
    """The attributes of a cookie that an answer sets, by their names in lower case."""
    (header,) = [value for value in answer.headers.get_list("set-cookie") if value.startswith(f"{name}=")]
    attributes = (part.strip().partition("=") for part in header.split(";"))
    return {key.lower(): value for key, _, value in attributes}


@pytest.mark.parametrize(
    ("address", "prefix", "secure"), [(ADDRESS, "", False), ("https://denll.example", "__Host-", True)]
)
def test_SEC13_no_script_and_no_other_host_reaches_the_cookies(
    start: Callable[..., Client], provider: SigningProvider, address: str, prefix: str, secure: bool
) -> None:
    client = start(public_url=address, session_s=3600.0)
    client.base_url = address
    begun = client.get("/login", follow_redirects=False)
    finished = client.get(provider.authorize(begun.headers["location"]).removeprefix(address), follow_redirects=False)
    assert finished.status_code == 303
    for answer, name, max_age in ((begun, "denll-login", "600"), (finished, "denll-session", "3600")):
        attributes = cookie_of(answer, prefix + name)
        assert ("secure" in attributes) == secure
        assert {"httponly", "path", "samesite", "max-age"} <= attributes.keys()
        assert (attributes["path"], attributes["samesite"]) == ("/", "lax")
        assert attributes["max-age"] == max_age
        assert "domain" not in attributes
    assert cookie_of(finished, f"{prefix}denll-login")["max-age"] == "0"
    assert client.get("/session").status_code == 200


@BOTH
def test_SEC13_a_session_is_stored_as_a_hash(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start()
    sign_in(client, provider)
    token = csrf(client)["X-CSRF-Token"]
    client.app.state.session_cache.write_last_used()  # type: ignore[attr-defined]
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        row = session.execute(select(LoginSession)).scalar_one()
        stored = str(session.execute(text("select * from login_session")).all())
        stored += str(session.execute(text("select * from api_key")).all())
    assert len(row.id_sha256) == 64
    assert row.last_used_at is not None
    assert not [secret for secret in (client.cookies["denll-session"], token) if secret in stored]


WRONG_TOKENS = [None, "", "x", "0" * 64, "\xff".encode("latin-1")]


@pytest.mark.parametrize("token", WRONG_TOKENS)
@pytest.mark.parametrize(
    ("method", "path", "content", "kind"),
    [
        ("POST", "/jobs", b"{}", "application/json"),
        ("POST", "/datasets?name=x", b"PK", "application/zip"),
        ("POST", "/datasets", b"--x--", "multipart/form-data; boundary=x"),
        ("POST", "/predict", b"x", "image/png"),
        ("DELETE", f"/jobs/{uuid.UUID(int=1)}", b"", ""),
        ("PATCH", f"/uploads/{uuid.UUID(int=1)}", b"", "application/offset+octet-stream"),
        ("POST", "/logout", b"", ""),
        ("DELETE", "/sessions", b"", ""),
    ],
)
def test_SEC13_a_change_by_session_needs_its_token(
    start: Callable[..., Client],
    provider: SigningProvider,
    token: Any,
    method: str,
    path: str,
    content: bytes,
    kind: str,
) -> None:
    client = start(login_default_scopes=["admin"])
    sign_in(client, provider)
    headers: dict[str, Any] = ({"X-CSRF-Token": token} if token is not None else {}) | (
        {"Content-Type": kind} if kind else {}
    )
    assert problem_of(client.request(method, path, content=content, headers=headers)) == (403, "csrf-token-required")
    accepted = client.request(method, path, content=content, headers={**headers, **csrf(client)})
    assert accepted.status_code != 403


def test_SEC13_the_token_of_another_session_is_none(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start()
    sign_in(client, provider)
    of_another = csrf(client)
    client.cookies.clear()
    sign_in(client, provider)
    assert csrf(client) != of_another
    assert problem_of(client.post("/jobs", json={}, headers=of_another)) == (403, "csrf-token-required")


def test_a_key_wins_over_a_cookie_and_needs_no_token(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start()
    sign_in(client, provider)
    made = client.post("/keys", json={"name": "p", "scopes": ["predict"]}, headers=bearer(ADMIN))
    assert made.status_code == 201
    assert client.get("/jobs").status_code == 200
    assert problem_of(client.get("/jobs", headers=bearer(made.json()["key"]))) == (403, "forbidden")
    for header in ("Bearer wrong", "", "Basic x"):
        assert problem_of(client.get("/jobs", headers={"Authorization": header})) == (401, "unauthenticated")
        assert problem_of(client.get("/session", headers={"Authorization": header})) == (401, "unauthenticated")


@BOTH
def test_SEC13_logging_out_ends_the_session(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start()
    sign_in(client, provider)
    cookie, token = client.cookies["denll-session"], csrf(client)
    ended = client.post("/logout", headers=token)
    assert ended.status_code == 204
    assert cookie_of(ended, "denll-session")["max-age"] == "0"
    assert "denll-session" not in client.cookies
    with_cookie = {"Cookie": f"denll-session={cookie}"}
    assert client.get("/jobs", headers=with_cookie).status_code == 401
    assert client.post("/logout", headers={**with_cookie, **token}).status_code == 401
    assert sessions(client) == 0
    actions = [entry["action"] for entry in client.get("/audit", headers=bearer(ADMIN)).json()["items"]]
    assert actions == ["session.end", "session.begin"]


@BOTH
def test_SEC13_a_session_ends_by_itself_and_is_swept(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start(session_s=1.0)
    sign_in(client, provider)
    begin(client)
    header = {"Cookie": f"denll-session={client.cookies['denll-session']}"}
    client.cookies.clear()  # a browser forgets it by then
    ended: Any = eventually(
        lambda: (answer := client.get("/jobs", headers=header)).status_code == 401 and answer, seconds=3.0
    )
    assert "has ended" in ended.json()["detail"]
    client.app.state.session_cache.clear()  # type: ignore[attr-defined]
    assert client.get("/jobs", headers=header).status_code == 401  # also when it is looked up
    engine = client.app.state.engine  # type: ignore[attr-defined]
    with db.transaction(engine) as session:
        session.execute(update(PendingLogin).values(expires_at=now(-1.0)))
        retention.delete_expired(session, idempotency_keys_s=1e6, heartbeats_s=1e6)
    with db.transaction(engine) as session:
        assert session.scalar(select(func.count()).select_from(PendingLogin)) == 0
    assert sessions(client) == 0


@BOTH
def test_SEC13_a_login_takes_no_session_from_the_browser_and_ends_the_one_it_had(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    """Session fixation: somebody else has put a session into the browser, or knows the one before."""
    client = start()
    client.cookies.set("denll-session", "a" * 43, domain=urlsplit(ADDRESS).hostname or "")
    sign_in(client, provider)
    first = client.cookies["denll-session"]
    assert first != "a" * 43
    sign_in(client, provider)
    assert client.cookies["denll-session"] != first
    assert sessions(client) == 1
    client.cookies.clear()
    assert client.get("/jobs", headers={"Cookie": f"denll-session={first}"}).status_code == 401


@pytest.mark.parametrize(
    "cookie",
    [
        "denll-session=",
        "denll-session",
        "denll-session=x",
        "denll-session=" + "a" * 43,
        "denll-session=" + "a" * 60_000,
        "denll-session={0}; denll-session={0}",
        "denll-session=x; denll-session={0}",
        "denll-session={0}x",
        'denll-session="{0}"',
        "DENLL-SESSION={0}",
        ";" * 60_000,
        "denll-session=\xff",
        "__Host-denll-session={0}",
    ],
)
def test_SEC13_what_is_no_cookie_of_ours_is_a_401(
    start: Callable[..., Client], provider: SigningProvider, cookie: str
) -> None:
    client = start()
    sign_in(client, provider)
    header = cookie.format(client.cookies["denll-session"]).encode("latin-1")
    client.cookies.clear()
    for path in ("/jobs", "/session"):
        assert client.get(path, headers={b"Cookie": header}).status_code == 401


@BOTH
def test_SEC13_an_admin_ends_sessions(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start()
    sign_in(client, provider)
    ada = client.get("/session").json()["person_id"]
    of_ada = {"Cookie": f"denll-session={client.cookies['denll-session']}"}
    client.cookies.clear()
    provider.claims = {"sub": "grace", "groups": ["ml-admins"]}
    sign_in(client, provider)
    admin = csrf(client)
    assert client.delete(f"/sessions?person_id={ada}", headers=admin).status_code == 204
    assert client.get("/jobs").status_code == 200
    grace = client.cookies["denll-session"]
    client.cookies.clear()
    assert client.get("/jobs", headers=of_ada).status_code == 401
    unknown = client.delete(f"/sessions?person_id={uuid.uuid4()}", headers=bearer(ADMIN))
    assert problem_of(unknown) == (404, "key-not-found")
    assert client.delete("/sessions", headers=bearer(ADMIN)).status_code == 204
    assert client.get("/jobs", headers={"Cookie": f"denll-session={grace}"}).status_code == 401
    assert sessions(client) == 0
    provider.claims = {}
    assert sign_in(client, provider).status_code == 303, "they can log in again"


@BOTH
def test_who_is_revoked_is_shut_out(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start()
    sign_in(client, provider)
    ada = client.get("/session").json()["person_id"]
    assert client.delete(f"/keys/{ada}", headers=bearer(ADMIN)).status_code == 204
    assert client.get("/jobs").status_code == 401
    client.cookies.clear()
    assert problem_of(sign_in(client, provider)) == (403, "no-access")


def test_DEG1_a_session_that_is_known_goes_on_without_the_database(
    start: Callable[..., Client], provider: SigningProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a key does: what needs no database answers, and who is not known is told to come again."""
    monkeypatch.setattr("app.http.callers.FRESH_S", 0.0)  # each request looks the session up
    client = start()
    sign_in(client, provider)
    assert client.get("/methods").status_code == 200
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.execute(text("ALTER TABLE login_session RENAME TO gone"))
    client.app.state.engine.dispose()  # type: ignore[attr-defined]
    assert client.get("/methods").status_code == 200
    client.cookies.clear()
    unknown = client.get("/methods", headers={"Cookie": "denll-session=" + "a" * 43})
    assert problem_of(unknown) == (503, "database-unavailable")


# --- What the provider says later -------------------------------------------------------------------------------------


def make_due(client: Client) -> None:
    """Let the time come at which the provider is asked about every session."""
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.execute(update(LoginSession).values(check_at=now(-1.0)))
    client.app.state.session_cache.clear()  # type: ignore[attr-defined]


def asked_in(client: Client, provider: SigningProvider) -> list[str]:
    """One request of a person, after which the provider is asked; which of its paths were."""
    make_due(client)
    before = len(provider.requests)
    assert client.get("/methods").status_code == 200, "no request waits for the provider"
    eventually(lambda: not client.app.state.session_cache._checks, what="the end of the check")  # type: ignore[attr-defined]
    return provider.requests[before:]


def seconds_left(client: Client) -> float:
    with db.transaction(client.app.state.engine, read_only=True) as session:  # type: ignore[attr-defined]
        expires_at, at = session.execute(select(LoginSession.expires_at, now())).one()
    return float((expires_at - at).total_seconds())


def last_entry(client: Client) -> dict[str, Any]:
    entry: dict[str, Any] = client.get("/audit", headers=bearer(ADMIN)).json()["items"][0]
    return entry


@BOTH
def test_SEC14_a_lost_group_acts_in_every_session_once_the_provider_is_asked(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start()
    sign_in(client, provider)
    other = {"Cookie": f"denll-session={client.cookies['denll-session']}"}
    client.cookies.clear()
    sign_in(client, provider)
    token = csrf(client)
    provider.claims = {"groups": ["readers"]}
    client.app.state.settings.login_scopes["readers"] = ["read"]  # type: ignore[attr-defined]
    assert client.post("/jobs", json={}, headers=token).status_code == 422, "not yet: the session is new"
    assert asked_in(client, provider) == ["/token"]
    assert client.get("/session").json()["scopes"] == ["read"]
    assert problem_of(client.post("/jobs", json={}, headers=token)) == (403, "forbidden")
    entry = last_entry(client)
    assert (entry["actor"], entry["action"], entry["detail"]) == (
        "login provider", "session.change", {"scopes": ["read"]},
    )  # fmt: skip
    client.cookies.clear()
    assert client.get("/session", headers=other).json()["scopes"] == ["read"]


@BOTH
def test_SEC14_who_lost_every_group_has_no_session_any_more(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start()
    sign_in(client, provider)
    client.cookies.clear()
    sign_in(client, provider)
    provider.claims = {"groups": []}
    assert asked_in(client, provider) == ["/token"]
    assert client.get("/methods").status_code == 401
    assert sessions(client) == 0


def test_SEC14_a_login_that_ended_at_the_provider_ends_here(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start()
    sign_in(client, provider)
    provider.end_logins()
    assert asked_in(client, provider) == ["/token"]
    assert client.get("/methods").status_code == 401
    entry = last_entry(client)
    assert (entry["actor"], entry["action"]) == ("login provider", "session.end")


def test_a_gained_group_acts_too_and_refresh_tokens_are_used_once(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    """Used again, a token of this provider would end the login."""
    client = start()
    sign_in(client, provider)
    provider.claims = {"groups": ["labellers", "ml-admins"]}
    for _ in range(3):
        assert asked_in(client, provider) == ["/token"]
        assert client.get("/session").json()["scopes"] == ["admin", "read", "train"]
    (change,) = client.get("/audit?action=session.change", headers=bearer(ADMIN)).json()["items"]
    assert change["detail"] == {"scopes": ["admin", "read", "train"]}


@BOTH
def test_a_confirmed_session_ends_later_but_never_after_the_longest_time(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start(session_check_s=100.0, session_grace_s=500.0, session_s=3600.0)
    sign_in(client, provider)
    assert 500.0 < seconds_left(client) <= 600.0
    for age_s, left_s in ((0.0, 600.0), (3400.0, 200.0)):
        with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
            session.execute(update(LoginSession).values(created_at=now(-age_s), expires_at=now(120.0)))
        asked_in(client, provider)
        assert left_s - 60.0 < seconds_left(client) <= left_s


def test_SEC14_a_provider_that_is_away_ends_a_session_after_a_while(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start()
    sign_in(client, provider)
    before_s = seconds_left(client)
    provider.answer = lambda path: (503, {}, b"{}")
    assert asked_in(client, provider) == ["/token"]
    assert client.get("/methods").status_code == 200, "for the time of grace"
    assert client.app.state.session_cache._checks == {}, "it is not asked again at once"  # type: ignore[attr-defined]
    assert seconds_left(client) < before_s
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.execute(update(LoginSession).values(expires_at=now(-1.0)))
    client.app.state.session_cache.clear()  # type: ignore[attr-defined]
    assert client.get("/methods").status_code == 401


def test_a_provider_that_is_back_confirms_with_the_same_refresh_token(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start()
    sign_in(client, provider)
    provider.answer = lambda path: (503, {}, b"{}")
    asked_in(client, provider)
    provider.answer = lambda path: None
    assert asked_in(client, provider) == ["/token"]
    assert client.get("/methods").status_code == 200


def test_no_request_waits_for_the_provider(start: Callable[..., Client], provider: SigningProvider) -> None:
    """Requests are answered while the provider hangs, and it is requests_sent once for all of them."""
    client = start()
    sign_in(client, provider)
    reached, answer = threading.Event(), threading.Event()

    def hang(path: str) -> None:
        reached.set()
        assert answer.wait(60.0)

    provider.answer = hang
    make_due(client)
    before = len(provider.requests)
    for _ in range(5):
        assert client.get("/methods").status_code == 200
    assert reached.wait(60.0)
    assert client.get("/methods").status_code == 200
    assert provider.requests[before:] == ["/token"]
    answer.set()
    eventually(lambda: not client.app.state.session_cache._checks, what="the end of the check")  # type: ignore[attr-defined]


@BOTH
def test_of_two_processes_one_asks_the_provider(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start()
    other = start()
    sign_in(client, provider)
    other.cookies.set("denll-session", client.cookies["denll-session"])
    make_due(client)
    before = len(provider.requests)
    for _ in range(3):
        assert [one.get("/methods").status_code for one in (client, other)] == [200, 200]
    caches = [one.app.state.session_cache for one in (client, other)]  # type: ignore[attr-defined]
    eventually(lambda: not any(cache._checks for cache in caches), what="the end of the check")
    assert [path for path in provider.requests[before:] if path == "/token"] == ["/token"]


@pytest.mark.parametrize(
    ("claims", "header"),
    [({"sub": "grace"}, {}), ({"iss": "https://evil.example"}, {}), ({"aud": "other"}, {}), ({}, {"alg": "none"})],
    ids=["another person", "another issuer", "another audience", "no signature"],
)
def test_SEC12_a_refreshed_id_token_is_verified(
    start: Callable[..., Client], provider: SigningProvider, claims: dict[str, Any], header: dict[str, Any]
) -> None:
    client = start()
    sign_in(client, provider)
    provider.claims, provider.header = {"groups": ["ml-admins"], **claims}, header
    asked_in(client, provider)
    assert client.get("/methods").status_code == 401
    assert sessions(client) == 0


def test_groups_of_the_userinfo_endpoint_are_read_again(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start()
    provider.claims = {"groups": None}
    provider.userinfo = {"sub": "ada", "groups": ["labellers"]}
    sign_in(client, provider)
    provider.userinfo = {"sub": "ada", "groups": ["ml-admins"]}
    assert asked_in(client, provider) == ["/token", "/userinfo"]
    assert client.get("/session").json()["scopes"] == ["admin"]


def test_without_refresh_tokens_or_checks_a_session_lasts_as_long_as_it_may(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start(session_check_s=0.0, session_s=3600.0)
    sign_in(client, provider)
    assert 3500.0 < seconds_left(client) <= 3600.0
    with_checks = start(session_s=7200.0)
    provider.refreshes = False
    sign_in(with_checks, provider)
    client.cookies.clear()
    with db.transaction(client.app.state.engine, read_only=True) as session:  # type: ignore[attr-defined]
        rows = session.execute(select(LoginSession.check_at, LoginSession.refresh_token)).all()
    assert rows == [(None, None)] * 2


def test_SEC13_the_database_tells_no_refresh_token(start: Callable[..., Client], provider: SigningProvider) -> None:
    """Nor does a token that was stored for another session."""
    client = start()
    sign_in(client, provider)
    (token,) = provider._newest.values()
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        stored = session.execute(select(LoginSession.refresh_token)).scalar_one()
    session_id = client.cookies["denll-session"]
    assert stored is not None
    assert refresh_token.decrypt(stored, session_id) == token
    parts = [base64.urlsafe_b64decode(part + "==") for part in stored.split(".")]
    assert not any(token.encode() in part or session_id.encode() in part for part in parts)
    for other in (session_id[::-1], callers.digest(session_id)):
        with pytest.raises(ValueError, match="no refresh token of this session"):
            refresh_token.decrypt(stored, other)


@BOTH
def test_a_real_provider_is_asked_again(with_settings: Callable[..., Client], installed: str) -> None:
    client = with_settings(**LOGIN, oidc_issuer=installed)
    log_in(client)
    for groups, scopes in ((["ml-admins"], ["admin"]), (ADA["groups"], ["read", "train"])):
        changed = httpx2.put(f"{installed}/users/ada", json=ADA | {"groups": groups})
        assert changed.status_code == 204, changed.text
        make_due(client)
        assert client.get("/methods").status_code == 200
        eventually(lambda: not client.app.state.session_cache._checks, what="the end of the check")  # type: ignore[attr-defined]
        assert client.get("/session").json()["scopes"] == scopes


# --- People are callers -----------------------------------------------------------------------------------------------


@BOTH
def test_what_people_do_is_theirs(
    start: Callable[..., Client], provider: SigningProvider, archive_bytes: bytes
) -> None:
    client = start()
    sign_in(client, provider)
    ada, token = client.get("/session").json()["person_id"], csrf(client)
    dataset_id = upload(client, archive_bytes, **token).json()["id"]
    ingest_it(client, dataset_id)
    edits = {"edits": [{"action": "confirm", "image": 0, "from": "cat"}]}
    assert client.post(f"/datasets/{dataset_id}/labels", json=edits, headers=token).status_code == 201
    assert client.get(f"/datasets/{dataset_id}/labels").json()["items"][0]["author"] == "Ada (ada)"
    entry = client.get("/audit?action=labels.edit", headers=bearer(ADMIN)).json()["items"][0]
    assert (entry["actor"], entry["key_id"]) == ("Ada (ada)", ada)

    limits = {"queued_jobs": 1, "stored_bytes": 1}
    assert client.patch(f"/keys/{ada}", json=limits, headers=bearer(ADMIN)).status_code == 200
    assert client.post("/jobs", json={"dataset_id": dataset_id}, headers=token).status_code == 202
    refused = client.post("/jobs", json={"dataset_id": dataset_id}, headers=token)
    assert refused.json()["violated-policies"] == ["queued-jobs"]
    assert upload(client, archive_bytes, **token).json()["violated-policies"] == ["stored-bytes"]
    high = {"dataset_id": dataset_id, "priority": "high"}
    assert client.post("/jobs", json=high, headers=token).status_code in (403, 429)


@BOTH
def test_people_are_listed_beside_keys(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start()
    made = client.post("/keys", json={"name": "Ada", "scopes": ["read"]}, headers=bearer(ADMIN)).json()
    assert (made["issuer"], made["subject"]) == (None, None)
    for name in ("Ada", "Ada Lovelace"):
        provider.claims = {"name": name}
        sign_in(client, provider)
    client.app.state.key_cache.write_last_used()  # type: ignore[attr-defined]
    listed = client.get("/keys", headers=bearer(ADMIN)).json()["items"]
    people = [key for key in listed if key["subject"]]
    assert [(key["name"], key["subject"], key["issuer"]) for key in people] == [
        ("Ada Lovelace", "ada", provider.issuer)
    ]
    assert people[0]["scopes"] == ["read", "train"]
    assert client.get("/jobs").status_code == 200
    client.app.state.key_cache.write_last_used()  # type: ignore[attr-defined]
    assert client.get(f"/keys/{people[0]['id']}", headers=bearer(ADMIN)).json()["last_used_at"]


def test_a_name_passes_for_nobody_else(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start()
    provider.claims = {"name": "admin\r\n\x1b[31m" + "a" * 300, "sub": "s" * 255}
    sign_in(client, provider)
    (entry,) = client.get("/audit", headers=bearer(ADMIN)).json()["items"]
    assert entry["actor"].startswith("admin\\r\\n\\x1b[31m")
    assert entry["actor"].endswith(f"({'s' * 100})")
    assert len(entry["actor"]) <= 200


def test_DEG8_a_person_has_one_rate_in_all_sessions(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start(key_requests_per_s=0.4)  # four at once
    sign_in(client, provider)
    assert [client.get("/jobs").status_code for _ in range(2)] == [200, 200]
    client.cookies.clear()
    sign_in(client, provider)
    assert [client.get("/jobs").status_code for _ in range(3)] == [200, 200, 429]


def test_DEG8_logins_of_an_address_are_limited(start: Callable[..., Client], provider: SigningProvider) -> None:
    client = start(address_requests_per_s=0.3)  # three at once
    begin(client)
    assert client.get("/login/callback?state=x&code=y").status_code == 400
    assert client.get("/session").status_code == 401
    for path in ("/login", "/login/callback", "/session"):
        refused = client.get(path, follow_redirects=False)
        assert problem_of(refused) == (429, "rate-limited"), path


def test_the_callback_takes_what_providers_add_but_no_other_route_does(
    start: Callable[..., Client], provider: SigningProvider
) -> None:
    client = start()
    location = provider.authorize(begin(client)) + "&session_state=a&scope=openid&authuser=0"
    assert return_with(client, location).status_code == 303
    assert client.get("/login?prompt=none").status_code == 422


def test_a_backup_holds_people_and_none_of_their_sessions(
    start: Callable[..., Client], provider: SigningProvider, tmp_path: Path
) -> None:
    client = start()
    sign_in(client, provider)
    begin(client)
    folder = tmp_path / "backup"
    folder.mkdir()
    backup.dump(client.app.state.engine, folder)  # type: ignore[attr-defined]
    assert '"subject": "ada"' in (folder / "api_key.jsonl").read_text()
    assert not [file.name for file in folder.iterdir() if "login" in file.name]


def test_what_logins_need_is_loaded_by_the_first_one() -> None:
    """An API starts as fast as before, and faster than cryptography is imported."""
    program = "import sys, app.main; print({'joserfc', 'cryptography', 'httpx2'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- Settings ---------------------------------------------------------------------------------------------------------

COMPLETE: dict[str, Any] = {
    "oidc_issuer": "https://sso.example",
    "oidc_client_id": "denll",
    "public_url": "https://denll.example",
    "login_scopes": json.dumps(SCOPES),
    "admin_key": ADMIN,
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"oidc_client_id": ""}, "needs DENLL_OIDC_CLIENT_ID"),
        ({"public_url": ""}, "needs DENLL_PUBLIC_URL"),
        ({"admin_key": None}, "needs DENLL_ADMIN_KEY"),
        ({"login_scopes": ""}, "needs DENLL_LOGIN_SCOPES or DENLL_LOGIN_DEFAULT_SCOPES"),
        ({"login_scopes": "{"}, "DENLL_LOGIN_SCOPES must be JSON"),
        ({"login_scopes": '{"a": ["root"]}'}, "login_scopes"),
        ({"login_default_scopes": ["read", "root"]}, "login_default_scopes"),
        ({"oidc_scopes": "profile"}, "must contain openid"),
        ({"oidc_issuer": "http://sso.example"}, "http:// is for loopback alone"),
        ({"oidc_issuer": "sso.example"}, "must be an https:// URL"),
        ({"oidc_issuer": "https://sso.example?x=y"}, "must be an https:// URL"),
        ({"oidc_issuer": "https://user@sso.example"}, "must be an https:// URL"),
        ({"oidc_issuer": "file:///etc"}, "must be an https:// URL"),
        ({"public_url": "http://denll.example"}, "http:// is for loopback alone"),
        ({"public_url": "https://denll.example/path"}, "must end after the host"),
        ({"session_s": 0.0}, "session_s"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_start(changed: dict[str, Any], message: str) -> None:
    assert Settings(**COMPLETE).login_enabled
    with pytest.raises(ValidationError, match=message):
        Settings(**{**COMPLETE, **changed})


def test_SEC9_the_client_s_secret_reaches_the_api_alone() -> None:
    environment = {f"DENLL_{name.upper()}": str(value) for name, value in COMPLETE.items()}
    environment |= {"DENLL_OIDC_CLIENT_SECRET": "s" * 20, "DENLL_SESSION_S": "60"}
    hidden = environment.keys() - without_secrets(environment, "database_url").keys()
    assert hidden == {"DENLL_OIDC_CLIENT_SECRET", "DENLL_OIDC_ISSUER", "DENLL_ADMIN_KEY"}
    assert "s" * 20 not in repr(Settings(**COMPLETE, oidc_client_secret="s" * 20))


def test_the_public_address_is_answered_and_no_other_name(start: Callable[..., Client]) -> None:
    client = start(public_url="https://denll.example")
    assert client.get("/livez", headers={"Host": "denll.example"}).status_code == 200
    assert client.get("/livez", headers={"Host": "evil.example"}).status_code == 400


def test_no_row_is_both_a_key_and_a_person(client: Client) -> None:
    with pytest.raises(Exception, match=r"(?i)check"), db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.add(ApiKey(name="x", key_sha256="a" * 64, issuer="i", subject="s", scopes=[]))
