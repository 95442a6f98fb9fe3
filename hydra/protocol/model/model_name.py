"""What a model is called when nobody gave it a name. Knows neither disks nor the Hub."""

import re

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w][\w./-]{0,254}))?", re.ASCII)


def hub_parts(model_path: str) -> tuple[str, str] | None:
    """("org/name", revision) when `model_path` has the form org/name[@revision]; the revision is "" when left out."""
    matched = _HUB_ID.fullmatch(model_path)
    if matched is None or ".." in model_path or "--" in matched[1]:
        return None
    return matched[1], matched[2] or ""


def default_model_id(model_path: str) -> str:
    """A Hub id without its revision, or the last component of a directory's path."""
    parts = hub_parts(model_path)
    return parts[0] if parts is not None else model_path.rstrip("/").rsplit("/", 1)[-1]
