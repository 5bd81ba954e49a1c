"""OpenID Connect providers for tests: a real one that is installed, and one that signs whatever a test asks for.

The second speaks the same protocol over real HTTP, with a JWK Set, and is strict where the first is not: it checks the
client's secret, PKCE, the redirect URI, and that a code is used once.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import secrets
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import Key, OctKey, RSAKey

from tests import servers

CLIENT_ID, CLIENT_SECRET = "denll", "a secret: with / and %"


@contextlib.contextmanager
def installed_provider(*people: dict[str, Any]) -> Iterator[str]:
    """The issuer of an `oidc-provider-mock` that runs as a process.

    Args:
        people: The claims of each, with `sub`.
    """
    port = servers.free_port()
    issuer = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce", "true"]
    for person in people:
        command += ["--user-claims", json.dumps(person)]

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    with servers.running(command, ready):
        yield issuer


class SigningProvider:
    """A provider whose answers a test decides; use it as a context.

    Attributes:
        claims: Of the next ID tokens, besides those that every token has; None leaves one out.
        header: Of the next ID tokens.
        key: Which signs them, unless the header says HS256 or none.
        hmac_secret: Which signs them by HS256.
        published: The keys that clients are told of.
        metadata: Changes of the discovery document.
        userinfo: What the userinfo endpoint answers.
        answer: Answers a request instead of the provider, by its path: status, headers and body; None for most.
        requests: The paths that were asked for, in their order.
        refreshes: Whether it gives refresh tokens. A token is used once; one that is used again ends its login.
    """

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}
        self.header: dict[str, Any] = {}
        self.key: Key = RSAKey.generate_key(2048, {"kid": "first"}, private=True)
        self.published: list[Key] = [self.key]
        self.hmac_secret = b""
        self.metadata: dict[str, Any] = {}
        self.userinfo: dict[str, Any] = {}
        self.answer: Callable[[str], tuple[int, dict[str, str], bytes] | None] = lambda path: None
        self.secret: str | None = CLIENT_SECRET  # None: the client is public
        self.by_post = False
        self.requests: list[str] = []
        self.refreshes = True
        self._codes: dict[str, dict[str, str]] = {}
        self._logins: dict[str, str] = {}  # by refresh token, used ones too
        self._newest: dict[str, str] = {}  # the refresh token of a login
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> SigningProvider:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def discovery(self) -> dict[str, Any]:
        endpoints = {f"{name}_endpoint": f"{self.issuer}/{name}" for name in ("authorization", "token", "userinfo")}
        methods = ["client_secret_post" if self.by_post else "client_secret_basic"]
        document = {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/jwks", **endpoints}
        return document | {"token_endpoint_auth_methods_supported": methods} | self.metadata

    def end_logins(self) -> None:
        """What an admin of the provider does: no refresh token is accepted any more."""
        self._newest.clear()

    def authorize(self, location: str) -> str:
        """What the provider does once somebody has logged in: the address that it sends the browser back to."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self._codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def _tokens(self, form: dict[str, str], authorization: str) -> dict[str, Any] | None:
        """The tokens for a code or a refresh token; None where something about the request is wrong."""
        client = (form.get("client_id"), form.get("client_secret"))
        if self.secret is not None and not self.by_post:
            user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
            client = (unquote_plus(user), unquote_plus(password))
        if client != (CLIENT_ID, self.secret):
            return None
        if form["grant_type"] == "refresh_token":
            return self._refreshed(form["refresh_token"])
        query = self._codes.pop(form.get("code", ""), None)
        if query is None or form.get("redirect_uri") != query["redirect_uri"]:
            return None
        challenge = encoded(hashlib.sha256(form["code_verifier"].encode()).digest())
        if challenge.decode() != query["code_challenge"]:
            return None
        return self._answer(secrets.token_urlsafe(8), {"nonce": query["nonce"]})

    def _refreshed(self, refresh_token: str) -> dict[str, Any] | None:
        login = self._logins.get(refresh_token, "")
        if self._newest.get(login) != refresh_token:
            self._newest.pop(login, None)
            return None
        return self._answer(login, {})

    def _answer(self, login: str, claims: dict[str, Any]) -> dict[str, Any]:
        now_s = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "sub": "ada", "iat": now_s, **claims}
        claims |= {"exp": now_s + 60, "name": "Ada", "groups": ["labellers"]} | self.claims
        claims = {name: value for name, value in claims.items() if value is not None}
        tokens = {"access_token": "access", "token_type": "Bearer", "id_token": self._sign(claims)}
        if self.refreshes:
            tokens["refresh_token"] = secrets.token_urlsafe(32)
            self._logins[tokens["refresh_token"]] = login
            self._newest[login] = tokens["refresh_token"]
        return tokens

    def _sign(self, claims: dict[str, Any]) -> str:
        header = {"alg": "RS256", "kid": self.key.kid, **self.header}
        header = {name: value for name, value in header.items() if value is not None}
        if header["alg"] not in ("none", "HS256"):
            return jwt.encode(header, claims, self.key, algorithms=[header["alg"]])
        signed = b".".join(map(encoded, (json.dumps(header).encode(), json.dumps(claims).encode())))
        signature = hmac.digest(self.hmac_secret, signed, "sha256") if header["alg"] == "HS256" else b""
        return f"{signed.decode()}.{encoded(signature).decode()}"

    def _handler(provider) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                documents = {
                    "/.well-known/openid-configuration": provider.discovery,
                    "/jwks": lambda: {
                        "keys": [key.as_dict(private=isinstance(key, OctKey)) for key in provider.published]
                    },
                    "/userinfo": lambda: provider.userinfo,
                }
                self._respond(documents[self.path])

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = {name: values[0] for name, values in parse_qs(body).items()}
                self._respond(lambda: provider._tokens(form, self.headers.get("Authorization", "")))

            def _respond(self, document: Callable[[], Any]) -> None:
                provider.requests.append(self.path)
                status, headers, body = provider.answer(self.path) or (0, {}, b"")
                if not status:
                    made = document()
                    status = 200 if made is not None else 400
                    body = json.dumps(made if made is not None else {"error": "invalid_grant"}).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):  # a client that has read enough
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


def encoded(data: bytes) -> bytes:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")
