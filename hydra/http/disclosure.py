"""What an answer may tell of this machine's files: their paths, and where links lead, are for who manages the cluster.

Promises that no sentence keeps an absolute path, whoever wrote the sentence; names of files and of models stay. It
knows no refusal by its words.
"""

import re

import attrs

from hydra.protocol.model.model_spec import ModelCard
from hydra.protocol.refusal import Refusal

HIDDEN = "(a path)"
OWN_ROUTES = r"v1/|api/|health\b|ready\b|metrics\b"
# A blank belongs to a path where the word behind it goes on with a slash.
_PART = r"(?:[^\s'\"`,;()<>|\[\]]|\s(?=[^\s/'\"]+/))"
_PATH = re.compile(rf"(['\"`])~?/(?!{OWN_ROUTES})[^'\"`]*\1|(?<![\w.~/])~?/(?!/|{OWN_ROUTES}){_PART}*[\w/]")


def may_manage(path: str) -> bool:
    """Whether this route is for those who load models. Whoever reaches it may: nobody is asked who they are yet."""
    return path.startswith("/api/")


def without_paths(refusal: Refusal) -> Refusal:
    return attrs.evolve(refusal, message=_PATH.sub(HIDDEN, refusal.message))


def origin_of(card: ModelCard) -> str:
    """Where a model comes from, as anybody may know: its Hub id, or only its name."""
    return card.model_path if card.hub_commit is not None else card.model_id
