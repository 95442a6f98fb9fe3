"""The words of the models that are loaded: read once each, by one request, while others for the same model wait.

A model whose words are refused is refused until it is loaded anew: a trial is not repeated for every request. It knows
models by their cards, and no route.
"""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attrs
import structlog
import trio

from hydra.http.tokenizer import Words
from hydra.protocol.model_spec import ModelCard
from hydra.protocol.refusal import Refusal, RefusalError

LOOK_EVERY_S = 1.0

Key = tuple[str, int]  # where a model's small files lie, and when it was loaded


log = structlog.get_logger()


@attrs.frozen
class ChatTemplateFile:
    """The operator's template, for the model at one path."""

    file: Path
    model_path: str  # a directory, or a Hub id as it was asked for: the card's names the commit as well

    def stands_for(self, card: ModelCard) -> bool:
        return card.model_path == self.model_path or card.model_path.startswith(f"{self.model_path}@")


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

    async def _find(self, card: ModelCard, loaded: Sequence[ModelCard]) -> Words | Refusal:
        key = _key(card)
        for gone in self._words.keys() - {_key(other) for other in loaded}:
            del self._words[gone]
        found = self._words.get(key)
        if found is None:
            async with self._reading.setdefault(key, trio.Lock()):
                found = self._words.get(key) or await self._read(card)
                self._words[key] = found
            self._reading.pop(key, None)
        return found

    async def read_ahead(self, models: Callable[[], Awaitable[Sequence[ModelCard]]]) -> None:
        """Until cancelled: the words of every model that has become ready, so that no request has to wait for them."""
        while True:
            try:
                cards = await models()
            except RefusalError as why:
                log.debug("no models to read the words of", code=why.refusal.code)
                cards = ()
            for card in cards:
                if card.state == "ready":
                    await self._find(card, cards)  # a refusal is kept for whoever asks
            await trio.sleep(LOOK_EVERY_S)

    async def _read(self, card: ModelCard) -> Words | Refusal:
        own = self.chat_template if self.chat_template and self.chat_template.stands_for(card) else None
        try:
            return await self.load(Path(card.folder), own.file if own else None)
        except RefusalError as why:
            return why.refusal


def _key(card: ModelCard) -> Key:
    return card.folder, card.created_s
