"""The words of the models that are loaded: read once each, by one reader, while others who need them wait.

A model whose words are refused is refused until it is loaded anew: a trial is not repeated for every request. It knows
models by their cards, and no route.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attrs
import structlog
import trio

from hydra.http.tokenizer import Words
from hydra.protocol.model_name import hub_parts
from hydra.protocol.model_spec import ModelCard
from hydra.protocol.refusal import Refusal, RefusalError

LOOK_EVERY_S = 1.0
TOKENIZER_FIX = "put the tokenizer.json and tokenizer_config.json that belong to this model beside its weights"
REPOSITORY_FIX = "choose a repository that has these files, or a directory with the weights and a tokenizer.json"
TEMPLATE_FIX = "mend the template, or give another with `up MODEL --chat-template FILE`"

Key = tuple[str, int]  # where a model's small files lie, and when it was loaded


log = structlog.get_logger()


def is_model_at(card: ModelCard, asked: str) -> bool:
    """Whether this is the model at `asked`: a directory, or a Hub id, of which the card names the commit as well."""
    own, wanted = hub_parts(card.model_path), hub_parts(asked)
    if own is None or wanted is None:
        return card.model_path in (asked, os.path.normpath(asked))
    return own[0] == wanted[0]


@attrs.frozen
class ChatTemplateFile:
    """The operator's template, for the model at one path."""

    file: Path
    model_path: str

    def stands_for(self, card: ModelCard) -> bool:
        return is_model_at(card, self.model_path)


@attrs.frozen
class WordsFault:
    """Why a model should not be served with these words, and what helps."""

    refusal: Refusal
    fix: str


@attrs.define(eq=False)
class WordsShelf:
    """`load` reads a model's words without holding the event loop."""

    load: Callable[[Path, Path | None], Awaitable[Words]]
    chat_template: ChatTemplateFile | None = None
    _words: dict[Key, Words | Refusal] = attrs.field(factory=dict, init=False)
    _reading: dict[Key, trio.Lock] = attrs.field(factory=dict, init=False)

    async def words_of(self, card: ModelCard, loaded: Sequence[ModelCard]) -> Words:
        """Forgets the words of models that are not `loaded`. Raises RefusalError bad_model."""
        found = await self._find(card, loaded)
        if isinstance(found, Refusal):
            raise RefusalError(found)
        return found

    async def fault_of(self, card: ModelCard, loaded: Sequence[ModelCard]) -> WordsFault | None:
        """Why this model should not be served: its tokenizer is refused, or the template its chats use by default.

        A model without templates may be served: it completes prompts.
        """
        found = await self._find(card, loaded)
        if isinstance(found, Refusal):
            return WordsFault(found, TOKENIZER_FIX if hub_parts(card.model_path) is None else REPOSITORY_FIX)
        template = found.templates.get("default")
        if not isinstance(template, Refusal):
            return None
        own = self._own_template(card)
        fix = f"mend {own}, or leave --chat-template out" if own is not None else TEMPLATE_FIX
        return WordsFault(Refusal(code="bad_model", message=template.message), fix)

    def keep(self, loaded: Sequence[ModelCard]) -> None:
        """Forgets the words of all other models: what is loaded anew is read anew."""
        for gone in self._words.keys() - {_key(card) for card in loaded}:
            del self._words[gone]

    async def read_ahead(self, models: Callable[[], Awaitable[Sequence[ModelCard]]]) -> None:
        """Until cancelled: the words of every model that is known, so that neither a request nor a verdict on the
        model has to wait for the weights first.
        """
        while True:
            try:
                cards = await models()
            except RefusalError as why:
                log.debug("no models to read the words of", code=why.refusal.code)
            else:
                self.keep(cards)
                for card in cards:
                    await self._find(card, cards)  # a refusal is kept for whoever asks
            await trio.sleep(LOOK_EVERY_S)

    async def _find(self, card: ModelCard, loaded: Sequence[ModelCard]) -> Words | Refusal:
        key = _key(card)
        self.keep(loaded)
        found = self._words.get(key)
        if found is None:
            async with self._reading.setdefault(key, trio.Lock()):
                found = self._words.get(key) or await self._read(card)
                self._words[key] = found
            self._reading.pop(key, None)
        return found

    async def _read(self, card: ModelCard) -> Words | Refusal:
        """Once per model; so is what the log says of it."""
        try:
            words = await self.load(Path(card.folder), self._own_template(card))
        except RefusalError as why:
            log.warning("no request to this model can be read", model=card.model_id, why=why.refusal.message)
            return why.refusal
        except Exception:
            log.exception("reading the words of a model failed", model=card.model_id)
            return Refusal(code="internal_error", message="the tokenizer could not be read: internal error")
        for name, template in words.templates.items():
            if isinstance(template, Refusal):
                reason = template.message
                log.warning("a chat template cannot be used", model=card.model_id, template=name, why=reason)
        last_id = _last_id(words)
        if last_id >= card.vocab:
            log.warning(
                "the tokenizer has ids that the model has not; a prompt with one of them is refused",
                model=card.model_id, last_id=last_id, vocabulary=card.vocab,
            )  # fmt: skip
        return words

    def _own_template(self, card: ModelCard) -> Path | None:
        own = self.chat_template
        return own.file if own is not None and own.stands_for(card) else None


def _key(card: ModelCard) -> Key:
    return card.folder, card.created_s


def _last_id(words: Words) -> int:
    added = max(words.tokenizer.get_added_tokens_decoder(), default=-1)
    return max(words.tokenizer.get_vocab_size(with_added_tokens=False) - 1, added)
