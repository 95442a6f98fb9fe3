"""What all routes share: the cluster, the words of its models, and how an answer in JSON is made. Knows no route."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import attrs
from quart import Response

from hydra.actors.client import Cluster
from hydra.http.encoders import Encoders
from hydra.http.load_trials import LoadTrials
from hydra.http.openai_response import json_bytes
from hydra.http.readiness import Readiness
from hydra.http.shutdown import Shutdown
from hydra.protocol.model.model_spec import ModelCard
from hydra.protocol.refusal import RefusalError, refuse
from hydra.protocol.settings.server import WhileLoading
from hydra.text.cache import TokenizerCache
from hydra.text.tokenizer import ModelTokenizer

LOADING_RETRY_S = 5.0


@attrs.define(eq=False)
class Api:
    """What the routes share: the cluster, the words of each model, and what follows from them."""

    cluster: Cluster
    shutdown: Shutdown
    encoders: Encoders
    tokenizers: TokenizerCache
    trials: LoadTrials
    while_loading: WhileLoading = "wait"  # what requests to a model do meanwhile
    numbers: Iterator[int] = attrs.field(factory=lambda: count(1), init=False)  # of the requests of this frontend

    @property
    def readiness(self) -> Readiness:
        return Readiness(self.cluster, self.tokenizers)

    async def model(self, name: str) -> tuple[ModelCard, ModelTokenizer]:
        """Raises RefusalError model_not_found, bad_model."""
        cards = await self.cluster.models()
        card = next((card for card in cards if card.model_id == name), None)
        if card is None:
            await self._check_not_begun(name)
            known = ", ".join(card.model_id for card in cards) or "none"
            raise refuse("model_not_found", f"no model {name!r} is loaded (loaded: {known})", param="model")
        if card.state == "loading" and self.while_loading == "refuse":
            message = f"the model {name!r} is being loaded; requests do not wait for it ([server] while_loading)"
            raise refuse("loading", message, retry_after_s=LOADING_RETRY_S)
        return card, await self.tokenizers.words_of(card, cards)

    async def _check_not_begun(self, name: str) -> None:
        """Raises RefusalError loading: the load has begun, and the model's files are not understood yet."""
        try:
            jobs = await self.cluster.jobs(None)
        except RefusalError:
            return  # nobody can say; what is known is that it is not loaded
        if any(job.model_id == name and job.state == "loading" for job in jobs):
            raise refuse("loading", f"the model {name!r} is being loaded", retry_after_s=LOADING_RETRY_S)


def json_response(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json_bytes(content), status=status, headers=headers, content_type="application/json")
