"""Both ends of a TCP connection to an inference process prove that they know a shared secret, which never travels.

    inference -> API   {"challenge": nonce}
    API -> inference   {"challenge": nonce, "proof": HMAC-SHA256 of "client" and both nonces}
    inference -> API   {"proof": HMAC-SHA256 of "server" and both nonces}

Nonces are fresh for every connection, so no proof fits another one. The roles keep an end from being answered with its
own proof. What follows is not encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any, Literal

from app.predictions.frames import BadFrame

NONCE_BYTES = 32
LONGEST_NONCE = 128  # of the other end, in characters
GREETING_BYTES = 4096  # what an end may send before it has proved itself


def proof(secret: bytes, role: Literal["client", "server"], server_nonce: str, client_nonce: str) -> str:
    """What only an end that knows the secret can send on this connection; hexadecimal digits."""
    message = "\0".join((role, server_nonce, client_nonce)).encode("utf-8", "surrogatepass")
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


class ServerHandshake:
    """The inference process's end.

    Args:
        secret: What both ends know.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret, self._nonce = secret, secrets.token_hex(NONCE_BYTES)

    def challenge(self) -> dict[str, Any]:
        """The header of the first frame."""
        return {"challenge": self._nonce}

    def answer(self, header: dict[str, Any]) -> dict[str, Any]:
        """The header that answers the client's proof; BadFrame where it is none."""
        client_nonce = _nonce_in(header)
        _check(header, proof(self._secret, "client", self._nonce, client_nonce))
        return {"proof": proof(self._secret, "server", self._nonce, client_nonce)}


class ClientHandshake:
    """The API's end.

    Args:
        secret: What both ends know.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret, self._nonce = secret, secrets.token_hex(NONCE_BYTES)
        self._expected: str | None = None

    def answer(self, header: dict[str, Any]) -> dict[str, Any] | None:
        """The header to send next, or None once the server has proved itself; BadFrame where it has not."""
        if self._expected is not None:
            _check(header, self._expected)
            return None
        server_nonce = _nonce_in(header)
        self._expected = proof(self._secret, "server", server_nonce, self._nonce)
        return {"challenge": self._nonce, "proof": proof(self._secret, "client", server_nonce, self._nonce)}


def _nonce_in(header: dict[str, Any]) -> str:
    nonce = header.get("challenge")
    if not isinstance(nonce, str) or not 0 < len(nonce) <= LONGEST_NONCE:
        raise BadFrame("the other end does not ask for the shared secret (DENLL_INFERENCE_SECRET)")
    return nonce


def _check(header: dict[str, Any], expected: str) -> None:
    sent = header.get("proof")
    if not isinstance(sent, str) or not hmac.compare_digest(sent.encode("utf-8", "surrogatepass"), expected.encode()):
        raise BadFrame("the other end does not know the shared secret (DENLL_INFERENCE_SECRET)")
