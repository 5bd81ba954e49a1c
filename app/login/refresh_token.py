"""Refresh tokens of the provider, encrypted (JWE, RFC 7516) by a key that the id of their session gives.

The id is in the browser's cookie alone: what the database holds tells no token. Loads cryptography, which takes time.
"""

from __future__ import annotations

import hashlib
import hmac

from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

HEADER = {"alg": "dir", "enc": "A256GCM"}


def encrypt(token: str, session_id: str) -> str:
    """The token as it is stored."""
    return jwe.encrypt_compact(HEADER, token, _key(session_id))


def decrypt(stored: str, session_id: str) -> str:
    """The token.

    Raises:
        ValueError: It was not stored for this session.
    """
    try:
        plaintext = jwe.decrypt_compact(stored, _key(session_id)).plaintext
    except JoseError as error:
        raise ValueError(f"no refresh token of this session ({type(error).__name__})") from error
    return (plaintext or b"").decode()


def _key(session_id: str) -> OctKey:
    return OctKey.import_key(hmac.digest(session_id.encode(), b"refresh-token", hashlib.sha256))
