"""What a model is called when nobody gave it a name. Knows neither disks nor the Hub."""

import re

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w][\w./-]{0,254}))?", re.ASCII)


def hub_parts(model_path: str) -> tuple[str, str] | None:
    """("org/name", revision) when `model_path` has the form org/name[@revision]; the revision is "" when left out."""
    found = _HUB_ID.fullmatch(model_path)
    if found is None or ".." in model_path or "--" in found[1]:
        return None
    return found[1], found[2] or ""


def default_model_id(model_path: str) -> str:
    """A Hub id without its revision, or the last component of a directory's path."""
    parts = hub_parts(model_path)
    return parts[0] if parts is not None else model_path.rstrip("/").rsplit("/", 1)[-1]
