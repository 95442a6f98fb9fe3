"""What a model is called when nobody gave it a name. Knows neither disks nor the Hub."""

import re

import attrs

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w][\w./-]{0,254}))?", re.ASCII)
_GGUF = re.compile(r"(?:[\w][\w.+-]{0,254}/){0,4}[\w][\w.+-]{0,254}", re.ASCII)
_PART = re.compile(r"-\d{5}-of-\d{5}$", re.ASCII)
GGUF_SUFFIX = ".gguf"


@attrs.frozen
class HubName:
    """What `org/name[@revision][:GGUF]` says; what is left out is empty."""

    repo: str
    revision: str
    gguf: str  # a GGUF file of the repository, with its folder, or the quantisation in its name


def hub_name(model_path: str) -> HubName | None:
    """None when `model_path` has another form."""
    place, colon, gguf = model_path.partition(":")
    matched = _HUB_ID.fullmatch(place)
    if matched is None or ".." in model_path or "--" in matched[1] or (colon and _GGUF.fullmatch(gguf) is None):
        return None
    return HubName(matched[1], matched[2] or "", gguf)


def hub_parts(model_path: str) -> tuple[str, str] | None:
    """("org/name", revision) when `model_path` has the form org/name[@revision]; the revision is "" when left out."""
    name = hub_name(model_path)
    return None if name is None or name.gguf else (name.repo, name.revision)


def default_model_id(model_path: str) -> str:
    """A Hub id without its revision, or the last component of a path; a GGUF file without what its name ends with."""
    name = hub_name(model_path)
    if name is not None:
        return f"{name.repo}:{gguf_stem(name.gguf.rpartition('/')[2])}" if name.gguf else name.repo
    return gguf_stem(model_path.rstrip("/").rsplit("/", 1)[-1])


def gguf_stem(file: str) -> str:
    """The name of a GGUF file without its ending and without the number of a part; any other name as it is."""
    if not file.lower().endswith(GGUF_SUFFIX):
        return file
    return _PART.sub("", file[: -len(GGUF_SUFFIX)])
