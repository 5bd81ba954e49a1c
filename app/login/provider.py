"""The OpenID Connect provider that the operator has named: discovery, its keys, and what it says of a person.

Nothing is asked of it before the first login. It is asked over HTTP with limits of time and size; redirects are never
followed. What it publishes is cached for an hour, and its keys are read again when an ID token is signed by another.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote_plus, urlencode, urlsplit

from starlette.concurrency import run_in_threadpool

from app.errors import LoginDenied, LoginNotVerified, LoginUnavailable
from app.login.service import Person
from app.settings import Settings
from ml.formats.errors import printable

if TYPE_CHECKING:
    from httpx2 import AsyncClient
    from joserfc.jwk import KeySet

log = logging.getLogger(__name__)

CALLBACK = "/login/callback"
FRESH_S = 3600.0
LARGEST_BYTES = 512 * 1024  # of an answer of the provider
LARGEST_TOKEN = 64 * 1024  # characters of an ID token or a refresh token
RETRY_S = 10
NAME_CLAIMS = ("name", "preferred_username", "email")


class Identity(NamedTuple):
    """What the provider says of who has logged in.

    Attributes:
        person: Who it is.
        values: Of the claim that gives scopes.
        refresh_token: For the next `refresh`; None where the provider gives none, or the one before goes on.
    """

    person: Person
    values: frozenset[str]
    refresh_token: str | None


class Metadata(NamedTuple):
    """What is used of a provider's discovery document; times are `time.monotonic()`."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None
    basic: bool  # whether the secret goes into the Authorization header of requests for tokens
    states_issuer: bool  # whether it sends its name back with the code (RFC 9207)
    read_at: float


class Provider:
    """The provider. Used by the event loop alone.

    Args:
        settings: Its issuer, this service's id there, and limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: AsyncClient | None = None
        self._metadata: Metadata | None = None
        self._keys: KeySet | None = None
        self._keys_read_at = float("-inf")

    async def authorization_url(self, *, state: str, nonce: str, code_verifier: str) -> str:
        """Where the browser logs in.

        Raises:
            LoginUnavailable: The provider does not answer as it must.
        """
        metadata = await self._discover()
        challenge = base64.urlsafe_b64encode(hashlib.sha256(code_verifier.encode()).digest()).rstrip(b"=")
        query = {
            "response_type": "code",
            "client_id": self._settings.oidc_client_id,
            "redirect_uri": self._settings.public_origin + CALLBACK,
            "scope": self._settings.oidc_scopes,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge.decode(),
            "code_challenge_method": "S256",
        }
        separator = "&" if urlsplit(metadata.authorization_endpoint).query else "?"
        return f"{metadata.authorization_endpoint}{separator}{urlencode(query)}"

    async def identify(self, *, code: str, issuer: str | None, nonce: str, code_verifier: str) -> Identity:
        """Who has logged in.

        Args:
            code: What the browser brought from the provider.
            issuer: The parameter `iss` that came with it (RFC 9207).
            nonce: Of this login.
            code_verifier: Of this login.

        Raises:
            LoginDenied: The provider does not accept the code.
            LoginNotVerified: What it sent is not valid.
            LoginUnavailable: It does not answer as it must.
        """
        metadata = await self._discover()
        if issuer != self._settings.oidc_issuer and (issuer is not None or metadata.states_issuer):
            raise LoginNotVerified("The answer comes from another provider than the one that was asked.")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._settings.public_origin + CALLBACK,
            "code_verifier": code_verifier,
        }
        tokens = await self._request_tokens(metadata, form)
        return await self._identity(metadata, tokens, await self._validate(metadata, tokens, nonce))

    async def refresh(self, refresh_token: str, subject: str) -> Identity:
        """What is true now of somebody who has logged in before (OpenID Connect Core 1.0, section 12).

        Args:
            refresh_token: Of the login, or of the refresh before.
            subject: Who logged in.

        Raises:
            LoginDenied: The login has ended at the provider.
            LoginNotVerified: What it sent is not valid, or of somebody else.
            LoginUnavailable: It does not answer as it must.
        """
        metadata = await self._discover()
        tokens = await self._request_tokens(metadata, {"grant_type": "refresh_token", "refresh_token": refresh_token})
        claims: dict[str, Any] = {"sub": subject}
        if "id_token" in tokens:  # it may leave it out
            claims = await self._validate(metadata, tokens, None)
        if claims["sub"] != subject:
            raise LoginNotVerified("The ID token that came for a refresh token speaks of another person.")
        return await self._identity(metadata, tokens, claims)

    async def close(self) -> None:
        """Close its connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _discover(self) -> Metadata:
        if self._metadata is None or time.monotonic() - self._metadata.read_at > FRESH_S:
            url = f"{self._settings.oidc_issuer.rstrip('/')}/.well-known/openid-configuration"
            self._metadata = self._read_metadata(await self._ask("GET", url))
        return self._metadata

    def _read_metadata(self, document: Mapping[str, Any]) -> Metadata:
        issuer = self._settings.oidc_issuer
        if document.get("issuer") != issuer:
            named = printable(document.get("issuer"), 200)
            raise self._unavailable(f"the provider names itself {named}; DENLL_OIDC_ISSUER must be exactly that")
        endpoints = {
            name: document.get(name)
            for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint")
        }
        for name, endpoint in endpoints.items():
            if endpoint is None and name == "userinfo_endpoint":
                continue
            # An endpoint without TLS would undo that of the issuer.
            secure = issuer.startswith("http:") or (isinstance(endpoint, str) and endpoint.startswith("https:"))
            if not isinstance(endpoint, str) or not endpoint.startswith(("https://", "http://")) or not secure:
                raise self._unavailable(f"the {name} of the provider is no https:// URL")
        methods = document.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        return Metadata(
            **endpoints,  # type: ignore[arg-type]  # they were checked above
            basic="client_secret_basic" in methods or "client_secret_post" not in methods,
            states_issuer=document.get("authorization_response_iss_parameter_supported") is True,
            read_at=time.monotonic(),
        )

    async def _request_tokens(self, metadata: Metadata, form: dict[str, str]) -> dict[str, Any]:
        secret = self._settings.oidc_client_secret
        headers = {}
        if secret is not None and metadata.basic:
            pair = f"{quote_plus(self._settings.oidc_client_id)}:{quote_plus(secret.get_secret_value())}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": self._settings.oidc_client_id}
            if secret is not None:
                form |= {"client_secret": secret.get_secret_value()}
        return await self._ask("POST", metadata.token_endpoint, form=form, headers=headers)

    async def _identity(self, metadata: Metadata, tokens: Mapping[str, Any], claims: dict[str, Any]) -> Identity:
        """What the ID token says, and the userinfo endpoint where it lacks the claim that gives scopes."""
        if find_claim(claims, self._settings.login_claim) is None:
            claims = await self._more_claims(metadata, tokens, claims) | claims
        person = Person(self._settings.oidc_issuer, claims["sub"], name_of(claims))
        refresh_token = tokens.get("refresh_token")
        is_token = isinstance(refresh_token, str) and 0 < len(refresh_token) <= LARGEST_TOKEN
        values = values_of(find_claim(claims, self._settings.login_claim))
        return Identity(person, values, refresh_token if is_token else None)

    async def _validate(self, metadata: Metadata, tokens: Mapping[str, Any], nonce: str | None) -> dict[str, Any]:
        """The claims of the ID token; the provider's keys are read, and once more where they may have changed."""
        from app.login import id_token  # `_open_client` has loaded it

        token = tokens.get("id_token")
        if not isinstance(token, str) or len(token) > LARGEST_TOKEN:
            raise LoginNotVerified("The provider sent no ID token that can be read.")

        def claims(keys: KeySet) -> dict[str, Any]:
            return id_token.validate(
                token,
                keys,
                issuer=self._settings.oidc_issuer,
                client_id=self._settings.oidc_client_id,
                nonce=nonce,
                leeway_s=self._settings.oidc_leeway_s,
                now_s=int(time.time()),
            )

        if self._keys is not None and time.monotonic() - self._keys_read_at < FRESH_S:
            with contextlib.suppress(id_token.UnknownKey):
                return claims(self._keys)
        document = await self._ask("GET", metadata.jwks_uri)
        try:
            self._keys, self._keys_read_at = id_token.public_keys(document), time.monotonic()
        except ValueError as error:
            raise self._unavailable(f"the keys of the provider cannot be read: {error}") from error
        try:
            return claims(self._keys)
        except id_token.UnknownKey as error:
            raise LoginNotVerified("The ID token is signed by no key of the provider.") from error

    async def _more_claims(
        self, metadata: Metadata, tokens: Mapping[str, Any], claims: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the userinfo endpoint says, where the ID token lacks the claim that gives scopes."""
        access_token = tokens.get("access_token")
        if metadata.userinfo_endpoint is None or not isinstance(access_token, str) or not access_token.isascii():
            return {}
        headers = {"Authorization": f"Bearer {access_token}"}
        document = await self._ask("GET", metadata.userinfo_endpoint, headers=headers)
        if document.get("sub") != claims["sub"]:
            raise LoginNotVerified("The userinfo endpoint of the provider speaks of another person.")
        return document

    async def _ask(
        self, method: str, url: str, *, form: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """The JSON object that the provider answers; LoginDenied where it refuses what a client sent."""
        client = self._client or await self._open_client()
        from httpx2 import HTTPError, InvalidURL

        headers = {"Accept": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        where = urlsplit(url).path
        try:
            async with (
                asyncio.timeout(self._settings.oidc_timeout_s),
                client.stream(method, url, data=form, headers=headers) as response,
            ):
                body = bytearray()
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > LARGEST_BYTES:
                        raise self._unavailable(f"{where} answers more than {LARGEST_BYTES} bytes")
        except TimeoutError as error:
            raise self._unavailable(f"{where} does not answer within {self._settings.oidc_timeout_s:g} s") from error
        except (HTTPError, InvalidURL, ValueError) as error:
            raise self._unavailable(f"{where} cannot be reached ({type(error).__name__})") from error
        document = read_object(bytes(body))
        if response.status_code == 400 and form is not None and document is not None:
            log.warning("the provider refused a code or refresh token: %s", printable(document.get("error"), 100))
            raise LoginDenied("The provider does not accept this login: it may have expired or been used.")
        if response.status_code != 200 or document is None:
            raise self._unavailable(f"{where} answers {response.status_code}, and no JSON object as it must")
        return document

    async def _open_client(self) -> AsyncClient:
        """The HTTP client, made at the first login: what it needs takes a while to load, in a thread."""
        timeout_s = self._settings.oidc_timeout_s

        def load() -> AsyncClient:
            import httpx2

            from app.login import id_token, refresh_token  # noqa: F401 - loaded for `_validate` and for sessions

            return httpx2.AsyncClient(follow_redirects=False, timeout=timeout_s)

        client = await run_in_threadpool(load)
        self._client = self._client or client  # of two first logins at once, one client stays unused and unopened
        return self._client

    def _unavailable(self, why: str) -> LoginUnavailable:
        """The problem; what is wrong is for the operator, in the log."""
        log.warning("login: %s", why)
        detail = "The login provider does not answer as it must; try again in a few seconds. The log says more."
        return LoginUnavailable(detail, retry_after_s=RETRY_S)


def read_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body; None where it is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def find_claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of this name, or where dots lead through objects, such as `realm_access.roles`; None without it."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def values_of(claim: Any) -> frozenset[str]:
    """The texts of a claim that is one, or a list of them."""
    return frozenset(value for value in (claim if isinstance(claim, list) else [claim]) if isinstance(value, str))


def name_of(claims: Mapping[str, Any]) -> str:
    """What to call a person, as printable text of at most 200 characters."""
    names = (claims.get(claim) for claim in NAME_CLAIMS)
    name = next((name.strip() for name in names if isinstance(name, str) and name.strip()), claims["sub"])
    return printable(name, 200)
