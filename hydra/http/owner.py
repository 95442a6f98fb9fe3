"""To whom a request belongs: a digest of the API key that it presents, the same in every frontend and every life.

The key itself goes no further than this file. Nobody checks it here, so an owner says who asks alike, not who may ask.
"""

from hashlib import blake2b

OWNER_BYTES = 16


def owner_of(authorization: str | None) -> str:
    """Of the value of an Authorization header. Empty: no key was presented."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        return ""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=OWNER_BYTES, person=b"hydra owner").hexdigest()
