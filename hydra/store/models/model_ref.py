"""What MODEL means: a directory or a GGUF file of this machine, or `org/name[@revision][:GGUF]` at a Hub; and how that
Hub is reached.

Promises: what exists here always wins, and access to the Hub is a value that is handed on, never a global. The
environment means what it means to huggingface_hub; a variable that is set to nothing counts as not set. Refuses to know
what is in a model. The token is shown nowhere: not in a representation, so not in a log.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from hydra.protocol.model.model_name import hub_name
from hydra.protocol.model.source import HubCommit
from hydra.protocol.refusal import refuse
from hydra.store.gguf.gguf_content import is_gguf

ENDPOINT = "https://huggingface.co"
REVISION = "main"
_YES = {"1", "on", "yes", "true"}  # as huggingface_hub reads its own switches
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


@attrs.frozen
class HubRef:
    """One repository at one revision: a branch, a tag or a commit; and which of its GGUF files, if one is meant."""

    repo: str  # org/name
    revision: str = REVISION
    gguf: str = ""  # a file's name, or the quantisation in it
    folder: str = ""  # of the repository, in which that file is; empty: its top, or it is not known

    def __str__(self) -> str:
        folder = f"{self.folder}/" if self.folder else ""
        return f"{self.repo}@{self.revision}" + (f":{folder}{self.gguf}" if self.gguf else "")

    @classmethod
    def of(cls, source: HubCommit) -> "HubRef":
        return cls(source.repo, source.commit, folder=source.folder)

    @property
    def as_source(self) -> HubCommit:
        """Of a ref that names a commit: what a worker is told to read."""
        return HubCommit(self.repo, self.revision, self.folder)

    @property
    def is_commit(self) -> bool:
        """Whether it names one content for ever."""
        return is_commit(self.revision)


def is_commit(revision: str) -> bool:
    """Whether `revision` is the full id of a commit, not a branch or a tag."""
    return _COMMIT.fullmatch(revision) is not None


@attrs.frozen(kw_only=True)
class HubAccess:
    """Where the Hub is, who asks, whether it may be asked at all, and where other tools keep what they fetched."""

    endpoint: str = ENDPOINT
    token: str = attrs.field(default="", repr=False)  # empty: none
    offline: bool = False
    hf_cache: Path | None = (
        None  # the Hugging Face cache of this machine, which is only read; None: it is not looked at
    )

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "HubAccess":
        """From the variables that every tool for the Hub understands."""

        def first(*names: str) -> str:
            return next((environ[name] for name in names if environ.get(name)), "")

        token = first("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # the second name is the older one
        return cls(
            endpoint=first("HF_ENDPOINT").rstrip("/") or ENDPOINT,
            token=token.replace("\r", "").replace("\n", "").strip(),
            offline=first("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE").strip().lower() in _YES,
            hf_cache=_hf_cache(first),
        )


def _hf_cache(first: Callable[..., str]) -> Path:
    """The directory in which huggingface_hub keeps what it fetches; `first` reads the first variable that is set."""
    if folder := first("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        return _expanded(folder)
    if home := first("HF_HOME"):
        return _expanded(home) / "hub"
    return _expanded(first("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path))).absolute()  # noqa: PTH111 - ~somebody unknown stays


def parse_ref(model: str) -> Path | HubRef:
    """Raises RefusalError model_not_found when `model` is nothing here and has not the form of a Hub id."""
    try:
        path = Path(model).expanduser()
        if model and (path.is_dir() or (is_gguf(path.name) and path.is_file())):
            return path
    except (OSError, ValueError, RuntimeError):  # no permission, a NUL in the path, ~somebody unknown
        pass
    name = hub_name(model)
    if name is not None:
        folder, _, gguf = name.gguf.rpartition("/")
        return HubRef(name.repo, name.revision or REVISION, gguf, folder)
    raise refuse(
        "model_not_found",
        f"There is no model directory or GGUF file at {model!r}, and it is no Hub id of the form "
        "org/name[@revision][:[FOLDER/]FILE.gguf]. Check the path.",
    )
