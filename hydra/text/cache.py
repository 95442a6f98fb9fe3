"""The words of the models that are loaded: read once each, by one reader, while others who need them wait.

A model whose words are refused is refused until it is loaded anew: a trial is not repeated for every request. While a
model is loaded its words stay as they were read; a new load keeps them only if the files are still the same, or gone.
It knows models by their cards, and no route.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attrs
import structlog
import trio

from hydra.protocol.model.model_name import hub_name
from hydra.protocol.model.model_spec import ModelCard
from hydra.protocol.refusal import Refusal, RefusalError
from hydra.text.file_versions import FilesIdentity, identity_of
from hydra.text.tokenizer import ModelTokenizer

LOOK_EVERY_S = 1.0
TOKENIZER_FIX = "put the tokenizer.json and tokenizer_config.json that belong to this model beside its weights"
REPOSITORY_FIX = "choose a repository that has these files, or a directory with the weights and a tokenizer.json"
TEMPLATE_FIX = "mend the template, or give another with `up MODEL --chat-template FILE`"

Load = tuple[str, int]

log = structlog.get_logger()


def is_model_at(card: ModelCard, asked: str) -> bool:
    """Whether this is the model at `asked`: a directory, or a Hub id, of which the card names the commit as well."""
    own, wanted = card.hub_commit, hub_name(asked)
    if own is None or wanted is None:
        return card.model_path in (asked, os.path.normpath(asked))
    here = hub_name(card.model_path)
    gguf = "" if here is None else here.gguf  # a file, of which `asked` may have said no more than the quantisation
    folder, slash, word = wanted.gguf.lower().rpartition("/")
    is_file = gguf.lower().startswith(folder + slash) and word in gguf.lower()
    return own.repo == wanted.repo and bool(gguf) == bool(wanted.gguf) and is_file


@attrs.frozen
class ChatTemplateFile:
    """The operator's template, for the model at one path."""

    file: Path
    model_path: str

    def stands_for(self, card: ModelCard) -> bool:
        return is_model_at(card, self.model_path)


@attrs.frozen
class TokenizerFault:
    """Why a model should not be served with these words, and what helps."""

    refusal: Refusal
    fix: str


@attrs.define(eq=False)
class _Held:
    """What was read from one folder: from which files, and for which loads it is known to hold."""

    words: ModelTokenizer | Refusal
    files: FilesIdentity
    loads: set[Load]

    def holds_for(self, files: FilesIdentity) -> bool:
        """For a load that is new. What was refused is tried again."""
        return not isinstance(self.words, Refusal) and files in (self.files, ())


@attrs.define(eq=False)
class TokenizerCache:
    """`load` reads a model's words without holding the event loop."""

    load: Callable[[Path, Path | None], Awaitable[ModelTokenizer]]
    chat_template: ChatTemplateFile | None = None
    _held: dict[str, _Held] = attrs.field(factory=dict, init=False)  # by folder
    _reading: dict[str, trio.Lock] = attrs.field(factory=dict, init=False)

    async def words_of(self, card: ModelCard, loaded: Sequence[ModelCard]) -> ModelTokenizer:
        """Forgets the words of models that are not `loaded`. Raises RefusalError bad_model."""
        found = await self._find(card, loaded)
        if isinstance(found, Refusal):
            raise RefusalError(found)
        return found

    async def fault_of(self, card: ModelCard, loaded: Sequence[ModelCard]) -> TokenizerFault | None:
        """Why this model should not be served: its tokenizer is refused, or the template its chats use by default.

        A model without templates may be served: it completes prompts.
        """
        found = await self._find(card, loaded)
        if isinstance(found, Refusal):
            return TokenizerFault(found, TOKENIZER_FIX if card.hub_commit is None else REPOSITORY_FIX)
        template = found.templates.get("default")
        if not isinstance(template, Refusal):
            return None
        own = self._own_template(card)
        fix = f"mend {own}, or leave --chat-template out" if own is not None else TEMPLATE_FIX
        return TokenizerFault(Refusal(code="bad_model", message=template.message), fix)

    def keep(self, loaded: Sequence[ModelCard]) -> None:
        """Forgets the words of all other models: what is loaded anew is read anew."""
        for gone in self._held.keys() - {card.folder for card in loaded}:
            del self._held[gone]
        loads = {_load_of(card) for card in loaded}
        for held in self._held.values():
            held.loads &= loads

    async def read_ahead(self, models: Callable[[], Awaitable[Sequence[ModelCard]]]) -> None:
        """Until cancelled: the words of every model that is known, so that neither a request nor a verdict on the
        model has to wait for the weights first.
        """
        while True:
            try:
                cards = await models()
            except RefusalError as error:
                log.debug("no models to read the words of", code=error.refusal.code)
            else:
                self.keep(cards)
                for card in cards:
                    await self._find(card, cards)  # a refusal is kept for whoever asks
            await trio.sleep(LOOK_EVERY_S)

    async def _find(self, card: ModelCard, loaded: Sequence[ModelCard]) -> ModelTokenizer | Refusal:
        self.keep(loaded)
        if (words := self._known(card)) is None:
            async with self._reading.setdefault(card.folder, trio.Lock()):
                words = self._known(card) or await self._renew(card)
            self._reading.pop(card.folder, None)
        return words

    def _known(self, card: ModelCard) -> ModelTokenizer | Refusal | None:
        held = self._held.get(card.folder)
        return held.words if held is not None and _load_of(card) in held.loads else None

    async def _renew(self, card: ModelCard) -> ModelTokenizer | Refusal:
        """For a load that is seen for the first time."""
        files = identity_of(Path(card.folder), self._own_template(card))  # before they are read: a change shows later
        held = self._held.get(card.folder)
        if held is None or not held.holds_for(files):
            held = self._held[card.folder] = _Held(await self._read(card), files, set())
        held.loads.add(_load_of(card))
        if not isinstance(held.words, Refusal):
            _warn(card, held.words)
        return held.words

    async def _read(self, card: ModelCard) -> ModelTokenizer | Refusal:
        """Once per model; so is what the log says of it."""
        try:
            words = await self.load(Path(card.folder), self._own_template(card))
        except RefusalError as error:
            log.warning("no request to this model can be read", model=card.model_id, why=error.refusal.message)
            return error.refusal
        except Exception:
            log.exception("reading the words of a model failed", model=card.model_id)
            return Refusal(code="internal_error", message="the tokenizer could not be read: internal error")
        return words

    def _own_template(self, card: ModelCard) -> Path | None:
        own = self.chat_template
        return own.file if own is not None and own.stands_for(card) else None


def _load_of(card: ModelCard) -> Load:
    return card.load, card.created_s


def _warn(card: ModelCard, words: ModelTokenizer) -> None:
    """Once per load."""
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


def _last_id(words: ModelTokenizer) -> int:
    added = max(words.tokenizer.get_added_tokens_decoder(), default=-1)
    return max(words.tokenizer.get_vocab_size(with_added_tokens=False) - 1, added)
