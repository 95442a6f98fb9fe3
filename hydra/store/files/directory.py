"""A model directory as a fenced place: which of its files may be opened, and small JSON files read with suspicion.

Promises: a name is one plain path component, what it leads to lies inside the directory (or in the blobs of the Hugging
Face cache it belongs to) and is a regular file; JSON is UTF-8, an object, bounded in size, and says nothing twice.
Refuses to know what any file means.

In a Hugging Face cache the files of `models--org--name/snapshots/<commit>` are links into its `blobs`, and a blob may
itself be a link into `blobs/` at the top of the cache, which all its repositories share.
"""

import json
import os
import re
import reprlib
from pathlib import Path
from typing import Any

from hydra.protocol.refusal import refuse
from hydra.store.files.foreign_file import is_error_answer, refuse_foreign

JSON_MAX_BYTES = 4 * 2**20
NAME_MAX_BYTES = 255
FOLDERS_MAX = 4  # one in the other, in a snapshot of the Hub
SHARED_BLOBS_MARK = ".huggingface-shared-blobs"  # huggingface_hub's mark on the blobs of a whole cache

_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)

_brief = reprlib.Repr()  # neither long nor deep, whatever it is given
_brief.maxstring = 120


def shown(value: Any) -> str:
    """A foreign value as a refusal may quote it: short, and safe to encode."""
    return "nothing" if value is None else _brief.repr(value)


def open_directory(model_path: str) -> Path:
    """The directory at `model_path` as an absolute path, its links kept; refused when there is none."""
    try:
        directory = Path(os.path.abspath(Path(model_path).expanduser()))  # noqa: PTH100 - resolve() would follow links
        if model_path and directory.is_dir():
            return directory
    except (OSError, ValueError, RuntimeError):  # no permission, a NUL in the path, ~somebody unknown
        pass
    raise refuse("model_not_found", f"There is no model directory at {model_path!r}. Check the path.")


def is_plain_name(name: str) -> bool:
    """Whether `name` is one path component that cannot mean any other place, on any system."""
    plain = name not in ("", ".", "..") and name.isprintable() and not any(c in "/\\:" for c in name)
    return plain and len(name.encode()) <= NAME_MAX_BYTES


def locate(directory: Path, name: str, folder: str = ".") -> Path | None:
    """The real file behind `name`, or None when there is none; refused when it lies outside the fence.

    `folder`: the one inside the directory that it is in, a plain name too.
    """
    if not is_plain_name(name) or not (folder == "." or is_plain_name(folder)):
        raise refuse("bad_model", f"{name!r} is not a plain file name, so {directory.name} cannot ask for it.")
    try:
        root = directory.resolve(strict=True)
        real = (root / folder / name).resolve(strict=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, up to Python 3.12
        raise refuse("bad_model", f"{name} in {directory} cannot be reached: {error}.") from error
    if not any(real.is_relative_to(place) for place in _allowed_places(root)):
        raise refuse(
            "bad_model", f"{name} in {directory} is a link to {shown(str(real))}, outside the model directory."
        )
    if not real.is_file():
        raise refuse("bad_model", f"{name} in {directory} is not a regular file.")
    return real


def _allowed_places(root: Path) -> tuple[Path, ...]:
    """The directory itself; for a snapshot in a Hugging Face cache also its repository's blobs and the cache's own."""
    repo = _cached_repo(root)
    if repo is None:
        return (root,)
    shared = repo.parent / "blobs"
    is_shared = repo.name.startswith("models--") and (shared / SHARED_BLOBS_MARK).is_file()
    return (root, repo / "blobs", *((shared,) if is_shared else ()))


def _cached_repo(root: Path) -> Path | None:
    """The repository in a Hugging Face cache of which `root` is a snapshot, or a folder in one."""
    if root.parent.name == "snapshots":
        return root.parent.parent
    for snapshot in list(root.parents)[:FOLDERS_MAX]:
        if snapshot.parent.name == "snapshots" and snapshot.parent.parent.name.startswith("models--"):
            return snapshot.parent.parent
    return None


def blob_name(directory: Path, name: str) -> str | None:
    """What the Hugging Face cache that `directory` belongs to calls the content of `name`: the Hub's own ETag.

    None where there is no such cache, or the file is a copy: nothing says then which content at the Hub it is.
    """
    try:
        root = directory.resolve(strict=True)
        target = root / (root / name).readlink()
        blobs = target.parent.resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    repo = _cached_repo(root)
    return target.name if repo is not None and blobs == repo / "blobs" and _ETAG.fullmatch(target.name) else None


def read_json_file(directory: Path, name: str, max_bytes: int = JSON_MAX_BYTES) -> tuple[dict[str, Any], bytes] | None:
    """The object in a JSON file together with the bytes it was read from; None when there is no such file."""
    real = locate(directory, name)
    if real is None:
        return None
    try:
        with real.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise refuse("bad_model", f"{name} in {directory} cannot be read: {error}.") from error
    if len(raw) > max_bytes:
        raise refuse("bad_model", f"{name} in {directory} is larger than {max_bytes} bytes.")
    return parse_object(raw, name), raw


def parse_object(raw: bytes, name: str) -> dict[str, Any]:
    """Strict JSON: one object, no key twice, no NaN or Infinity, no nesting deeper than the parser can carry."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except RecursionError as error:
        raise refuse("bad_model", f"{name} is nested too deeply.") from error
    except ValueError as error:
        refuse_foreign(raw, name)
        raise refuse("bad_model", f"{name} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise refuse("bad_model", f"{name} does not hold a JSON object.")
    if is_error_answer(value):
        raise refuse("bad_model", f"{name} holds the error answer of a server: {shown(value)}. Download it again.")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {shown(key)} appears twice")
        result[key] = value
    return result


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")
