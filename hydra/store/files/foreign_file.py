"""What a file holds in place of what its name promises, told from its first bytes, and how to get the real one.

Promises: nothing that could be a safetensors file or JSON is taken for something else. Refuses to know which file it
is, and how it came here.
"""

import codecs
from typing import Any

import attrs

from hydra.protocol.refusal import RefusalError, refuse

SNIFF_BYTES = 512  # more than any of these needs to be known by
UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".download")  # names of downloads under way

_AGAIN = "Download it again"
_UNPACK = "Unpack it, or fetch the model with `hf download`"
_CONVERT = "Convert it to safetensors where you trust it, with save_pretrained() of transformers"
_LOGIN = f"{_AGAIN} with a token that may read it (HF_TOKEN), or with `hf download`"
_LFS = "In the clone run `git lfs install` and `git lfs pull`, or fetch the model with `hf download`"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer to the file, not the file", _LFS),
    (b"version https://hawser.github.com/spec/", "a git-lfs pointer to the file, not the file", _LFS),
    (b"/annex/objects/", "a git-annex pointer to the file, not the file", "In the clone run `git annex get`"),
    (b"# xet version", "a git-xet pointer to the file, not the file", "Fetch the model with `hf download`"),
    (b"\x1f\x8b", "packed with gzip", _UNPACK),
    (b"PK\x03\x04", "a zip archive, as packed downloads and pickled PyTorch weights are", f"{_UNPACK}. {_CONVERT}"),
    (b"\xfd7zXZ\x00", "packed with xz", _UNPACK),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"GGUF", "a GGUF file", _CONVERT),
    (b"\x89HDF\r\n", "an HDF5 file, as TensorFlow and Keras write", _CONVERT),
    *((bytes((0x80, protocol)), "a Python pickle, which can run code when read", _CONVERT) for protocol in range(2, 6)),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body")
_ERROR_KEYS = frozenset(
    ("error", "errors", "error_code", "error_description", "code", "status", "statusCode", "message", "detail", "type")
)


@attrs.frozen
class Foreign:
    """`what` follows "is"; `fix` is an imperative."""

    what: str
    fix: str

    def __str__(self) -> str:
        return f"is {self.what}. {self.fix}."


def recognise(opening: bytes) -> Foreign | None:
    """What a file that opens with these bytes is, if that is neither weights nor a text that somebody wrote for it.

    Of a file of up to SNIFF_BYTES bytes `opening` is all of it.
    """
    opening = opening[:SNIFF_BYTES]
    if not opening:
        return Foreign("empty (0 bytes)", _AGAIN)
    if not opening.strip(b"\0"):
        return Foreign("nothing but zeros where it begins, as a download leaves that was broken off", _AGAIN)
    for magic, what, fix in _MAGIC:
        if opening.startswith(magic):
            return Foreign(what, fix)
    if opening[257:262] == b"ustar":
        return Foreign("a tar archive", _UNPACK)
    text = opening.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if text.startswith(_PAGES):
        return Foreign("an HTML page, as a login or an error page", _LOGIN)
    if text.startswith((b"<?xml", b"<error")):
        return Foreign("an XML answer, as a storage server refuses with", _LOGIN)
    return None


def recognise_weights(opening: bytes) -> Foreign | None:
    """The same for a file that cannot be meant to be text, whatever the text says."""
    known = recognise(opening)
    if known is not None:
        return known
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(opening[:120]).strip()  # the last character may be cut
    except UnicodeDecodeError:
        return None
    if not text or not all(character.isprintable() or character in "\r\n\t" for character in text):
        return None
    what = "JSON text, as a server answers an error with" if text.startswith("{") else "text"
    return Foreign(f"{what}, which begins {' '.join(text.split())[:80]!r}", _LOGIN)


def is_error_answer(value: dict[str, Any]) -> bool:
    """Whether a JSON object is what a server says in place of a file."""
    message = value.get("error", value.get("errors"))
    return bool(message) and isinstance(message, str | dict | list) and value.keys() <= _ERROR_KEYS


def refuse_foreign(opening: bytes, name: str) -> None:
    """For a file of text. Raises RefusalError bad_model when it is something else."""
    known = recognise(opening)
    if known is not None:
        raise refuse("bad_model", f"{name} {known}")


def unfinished(folder: object, names: list[str]) -> RefusalError | None:
    """The refusal for a folder that holds a download under way among these files, and no weights."""
    partial = next((name for name in names if name.endswith(UNFINISHED)), None)
    if partial is None:
        return None
    what = f"{folder} holds {partial[:120]!r}, which is a download that has not ended, and no weights beside it"
    return refuse("bad_model", f"{what}. Let it end, or start it again.")
