"""The tokens that files beside tokenizer.json name: added ones, and special ones with a name or without.

Promises what transformers finds in the same files: each such token is one id, with the flags it was given, in the same
order. What makes no sense is refused with the file's name. It opens no file itself, and knows no text.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any

import attrs
import structlog
from tokenizers import AddedToken, Tokenizer

from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.files.directory import shown

CONFIG, SPECIAL_MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
UNNAMED_LISTS = ("extra_special_tokens", "additional_special_tokens")  # the newer spelling goes before the older
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
LISTED_MAX = 1 << 20  # ids that are counted up to; a larger one is no token's

log = structlog.get_logger()


@attrs.frozen
class SideTokens:
    """What the files name. `listed` by id; `names` as templates see them ("bos_token" -> "<s>")."""

    listed: Mapping[int, AddedToken]
    named: Mapping[str, AddedToken]
    unnamed: tuple[AddedToken, ...]
    older: bool = False  # from files of their own: what tokenizer.json says of an id goes before them

    @property
    def names(self) -> dict[str, str]:
        return {name: token.content for name, token in self.named.items()}

    def add_to(self, tokenizer: Tokenizer) -> None:
        """Those that it does not have, or not with these flags: first by id, then the named ones, then the others."""
        added = tokenizer.get_added_tokens_decoder()
        known = {_shape(token) for token in added.values()}
        listed = [
            (number, self.listed[number]) for number in sorted(self.listed) if not (self.older and number in added)
        ]
        fresh = [token for _, token in listed if _shape(token) not in known]
        there = {shape[0] for shape in known} | {token.content for token in fresh}
        for token in (*self.named.values(), *self.unnamed):
            if token.content not in there:
                there.add(token.content)
                fresh.append(token)
        for is_special, group in groupby(fresh, key=lambda token: token.special):  # each call builds its automaton anew
            (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)(list(group))
        for number, token in listed:
            if (given := tokenizer.token_to_id(token.content)) != number:
                log.warning("a token has another id than its file says", token=token.content, file=number, here=given)


def side_tokens(config: Mapping[str, Any], read: Callable[[str], dict[str, Any]]) -> SideTokens:
    """`config` is tokenizer_config.json; `read` opens another JSON object, an empty one if there is no such file.

    Directories from before `added_tokens_decoder` keep some of it in files of their own. Raises RefusalError bad_model.
    """
    listed = config.get("added_tokens_decoder")
    if listed is not None:
        return SideTokens(_listed(listed), _named(config), tuple(_unnamed(config)))
    both = {**config, **read(SPECIAL_MAP)}
    both |= {name: _merged(config.get(name), both.get(name)) for name in UNNAMED_LISTS if name in both}
    named, unnamed = _named(both), tuple(_unnamed(both))
    special = {token.content for token in (*named.values(), *unnamed)}
    return SideTokens(_from_added(read(ADDED), special), named, unnamed, older=True)


def _listed(listed: Any) -> dict[int, AddedToken]:
    if not isinstance(listed, dict) or not all(key.isdecimal() and isinstance(listed[key], dict) for key in listed):
        raise refuse("bad_model", f"{CONFIG}: added_tokens_decoder must map token ids to objects")
    return {int(key): _token(token, CONFIG, {}) for key, token in listed.items()}


def _from_added(added: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
    for content, number in added.items():
        if not content or type(number) is not int or not 0 <= number < LISTED_MAX:
            raise refuse("bad_model", f"{ADDED} must map tokens to their ids, not {shown(content)} to {shown(number)}")
    return {
        number: AddedToken(content, normalized=content not in special, special=content in special)
        for content, number in added.items()
    }


def _named(config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Those that every tokenizer has a name for, then the model's own: any key like image_token, or a mapping."""
    own = [name for name in config if name.endswith("_token") and name not in NAMED_TOKENS]
    values: dict[str, Any] = {name: config[name] for name in (*NAMED_TOKENS, *own) if _is_token(config.get(name))}
    mapping = config.get(UNNAMED_LISTS[0])
    if isinstance(mapping, dict):
        values |= mapping
    return {name: _token(value, CONFIG, {"special": True}) for name, value in values.items() if value}


def _unnamed(config: Mapping[str, Any]) -> Iterator[AddedToken]:
    values: Any = next((config[name] for name in UNNAMED_LISTS if config.get(name)), [])
    if isinstance(values, dict):
        return  # they have names
    if not isinstance(values, list):
        raise _unlisted()
    yield from (_token(value, CONFIG, {"special": True}) for value in values)


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "content" in value)


def _merged(first: Any, second: Any) -> Any:
    """What both files list, once each."""
    if not (isinstance(first, list) and isinstance(second, list)):
        return second
    return [*first, *(value for value in second if value not in first)]


def _token(value: Any, file: str, forced: Mapping[str, bool]) -> AddedToken:
    """From its text, or from an object with flags."""
    listed = {"content": value} if isinstance(value, str) else value
    if not isinstance(listed, dict):
        raise _unlisted()
    content, flags = listed.get("content"), {name: listed[name] for name in FLAGS if name in listed}
    if not isinstance(content, str) or not content or not all(type(flag) is bool for flag in flags.values()):
        raise refuse("bad_model", f"{file}: an added token needs content and flags that are true or false")
    return AddedToken(content, **{**flags, **forced})


def _unlisted() -> RefusalError:
    return refuse("bad_model", f"{CONFIG}: {' and '.join(UNNAMED_LISTS)} must be lists of tokens, or map names to them")


def _shape(token: AddedToken) -> tuple[str, ...]:
    return (token.content, *(str(getattr(token, name)) for name in FLAGS))
