"""Small files that are there whole or not at all.

Promises: whoever reads finds the former content or the new one, and a write that fails leaves nothing behind. Refuses
to know what is in them.
"""

import secrets
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Makes the folder too. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    try:
        fresh.write_bytes(content)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
