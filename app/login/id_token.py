"""Validation of ID tokens (OpenID Connect Core 1.0, section 3.1.3.7). Loads cryptography, which takes a while."""

from __future__ import annotations

from typing import Any

from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from app.errors import LoginNotVerified

# Signatures by a key that only the provider has: `none`, and HMAC with a secret that both know, prove nothing here.
ALGORITHMS = [f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in (256, 384, 512)] + ["Ed25519", "EdDSA"]
KEY_TYPES = ("RSA", "EC", "OKP")


class UnknownKey(Exception):
    """No key of the set has signed the token: the provider may have new ones."""


def public_keys(document: Any) -> KeySet:
    """The keys for signatures in a JWK Set.

    Raises:
        ValueError: There are none, or it is no JWK Set.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("there is no list of keys")  # noqa: TRY004 - of a document, no argument
    usable = [
        key for key in listed if isinstance(key, dict) and key.get("kty") in KEY_TYPES and key.get("use") != "enc"
    ]
    try:
        return KeySet.import_key_set({"keys": usable})
    except (JoseError, TypeError, KeyError) as error:
        raise ValueError(f"no key can be read ({type(error).__name__})") from error


def validate(
    token: str, keys: KeySet, *, issuer: str, client_id: str, nonce: str | None, leeway_s: int, now_s: int
) -> dict[str, Any]:
    """The claims of a valid ID token.

    Args:
        token: As the provider sent it.
        keys: The provider's.
        issuer: The provider's name of itself.
        client_id: This service's name at the provider.
        nonce: Of the login that the token belongs to; None for one that came for a refresh token, which needs none
            (section 12.2).
        leeway_s: How far the clocks may differ.
        now_s: Seconds since 1970.

    Raises:
        UnknownKey: None of the keys has signed it.
        LoginNotVerified: It is not valid.
    """
    try:
        claims = jwt.decode(token, keys, algorithms=ALGORITHMS).claims
    except (InvalidKeyIdError, BadSignatureError) as error:
        raise UnknownKey(str(error)) from error
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise LoginNotVerified(f"The ID token cannot be read ({type(error).__name__}).") from error
    registry = jwt.JWTClaimsRegistry(
        now=now_s,
        leeway=leeway_s,
        iss={"essential": True, "value": issuer},
        aud={"essential": True, "value": client_id},
        sub={"essential": True},
        exp={"essential": True},
        iat={"essential": True},
        nonce={"essential": True, "value": nonce} if nonce is not None else {},
    )
    try:
        registry.validate(claims)
    except JoseError as error:
        name = getattr(error, "claim", "?")
        raise LoginNotVerified(f"The claim {name!r} of the ID token is missing, wrong or out of date.") from error
    # A token for several audiences says which of them asked for it, and that must be this service.
    several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if (several or "azp" in claims) and claims.get("azp") != client_id:
        raise LoginNotVerified("The claim 'azp' of the ID token names another client.")
    is_text = isinstance(claims.get("nonce", ""), str)
    if not is_text or not 0 < len(claims["sub"]) <= 255 or not claims["sub"].isprintable():
        raise LoginNotVerified("The claim 'sub' or 'nonce' of the ID token is no text of at most 255 characters.")
    return claims
