"""What all routes share: the cluster, the words of its models, and how an answer in JSON is made. Knows no route."""

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from quart import Response

from hydra.actors.client import Cluster
from hydra.http.shutdown import Shutdown
from hydra.http.tokenizer import Words
from hydra.http.words_shelf import WordsShelf
from hydra.protocol.model_spec import ModelCard
from hydra.protocol.refusal import RefusalError, refuse

Aside = Callable[..., Awaitable[Any]]


@attrs.define(eq=False)
class Api:
    """What the routes share: the cluster, and the words of each model."""

    cluster: Cluster
    shutdown: Shutdown
    aside: Aside
    shelf: WordsShelf

    async def model(self, name: str) -> tuple[ModelCard, Words]:
        """Raises RefusalError model_not_found, bad_model."""
        cards = await self.cluster.models()
        card = next((card for card in cards if card.model_id == name), None)
        if card is None:
            known = ", ".join(card.model_id for card in cards) or "none"
            raise refuse("model_not_found", f"no model {name!r} is loaded (loaded: {known})", param="model")
        return card, await self.shelf.words_of(card, cards)

    async def prove(self, name: str) -> None:
        """A model that has just been loaded is unloaded again when its words are refused. Raises RefusalError."""
        try:
            await self.model(name)
        except RefusalError as why:
            if why.refusal.code == "model_not_found":
                return  # somebody else has unloaded it by now
            await self.cluster.unload_model(name)
            raise


def json_response(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    import orjson

    return Response(orjson.dumps(content), status=status, headers=headers, content_type="application/json")
