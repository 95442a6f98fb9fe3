"""What stands before a checkpoint's tensor names in place of the family's "model.", found from the names themselves.

A base model saves its tensors without it (`layers.0...`), wrappers put their own in front (`module.`, `_orig_mod.`,
`language_model.`, `base_model.model.`). Promises: one prefix for all of the body, or a refusal that names two tensors
that do not go together; the head stands under that prefix or under a beginning of it. Refuses to know shapes and files.
"""

import re
from collections.abc import Collection

import attrs

from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.files.directory import shown
from hydra.store.models.names import Names

BODY = "model."  # what the families' own tables write
# Parts of a prefix that only say how a language model was wrapped. Others (vision_tower, mtp) hold other models.
WRAPPERS = frozenset(
    ("model", "base_model", "module", "_orig_mod", "language_model", "text_model", "transformer", "llm")
)

_LAYER = re.compile(r"(?:^|(?<=\.))layers\.\d{1,9}\.", re.ASCII)


def as_stored(names: Names, stored: Collection[str]) -> Names:
    """The family's `names` as this checkpoint writes them. Raises RefusalError bad_model for a mixture."""
    embedding = f"{names.embedding.removeprefix(BODY)}.weight"
    head = f"{names.head}.weight"
    embedded = {name[: -len(embedding)]: name for name in stored if _ends(name, embedding)}
    layered: dict[str, str] = {}
    for name in stored:
        for match in _LAYER.finditer(name):
            layered.setdefault(name[: match.start()], name)
    prefix = _body(embedded, layered)
    heads = sorted(name for name in stored if _ends(name, head) and prefix.startswith(name[: -len(head)]))
    if len(heads) > 1:
        raise _mixture(heads[0], heads[1])
    return attrs.evolve(
        names,
        layers=prefix + names.layers.removeprefix(BODY),
        norm=prefix + names.norm.removeprefix(BODY),
        embedding=prefix + names.embedding.removeprefix(BODY),
        head=heads[0].removesuffix(".weight") if heads else _beside(prefix) + names.head,
    )


def why_lacking(name: str, is_head: bool, stored: Collection[str]) -> RefusalError:
    """The refusal for a tensor that the config asks for and the checkpoint has not under this name."""
    what = f"The weights lack {name!r}, which config.json asks for"
    twin = next((other for other in stored if _bare(other) == _bare(name)), None)
    if twin is not None:
        return refuse("bad_model", f"{what}; they hold {shown(twin)}: names with and without a prefix are mixed.")
    if is_head:
        what += (
            " (tie_word_embeddings is false). They were saved from the base model, without the head that turns its "
            "output into tokens: get the weights of the whole model"
        )
    return refuse("bad_model", f"{what}.")


def _body(embedded: dict[str, str], layered: dict[str, str]) -> str:
    """The one prefix under which both an embedding and layers stand; both map a prefix to a name that has it."""
    usual = sorted(filter(_only_wraps, embedded.keys() | layered.keys()))
    whole = [prefix for prefix in embedded if prefix in layered]
    if len(usual) > 1:
        first, second = ({**layered, **embedded}[prefix] for prefix in usual[:2])
        raise _mixture(first, second)
    if usual:
        return usual[0]
    if len(whole) > 1:
        raise _mixture(*sorted(embedded[prefix] for prefix in whole)[:2])
    return whole[0] if whole else BODY


def _beside(prefix: str) -> str:
    """Where a head stands whose body stands under `prefix`: beside its "model." if it has one."""
    return prefix[: -len(BODY)] if f".{prefix}".endswith(f".{BODY}") else prefix


def _only_wraps(prefix: str) -> bool:
    return all(part in WRAPPERS for part in prefix.split(".")[:-1])


def _ends(name: str, tail: str) -> bool:
    """Whether the last components of `name` are `tail`."""
    return name == tail or name.endswith(f".{tail}")


def _bare(name: str) -> str:
    """A name without the wrappers before it."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        del parts[0]
    return ".".join(parts)


def _mixture(first: str, second: str) -> RefusalError:
    return refuse(
        "bad_model",
        f"The weights hold {shown(first)} and {shown(second)}: names with different prefixes are mixed, so it cannot "
        "be told which of them make up the model. Save it again from one model.",
    )
