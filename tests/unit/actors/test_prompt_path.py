"""A prompt is one column from the front door to the wire, and from the wire into the step: nothing copies it."""

import numpy as np

from hydra.actors.client import GenerateRequest
from hydra.actors.core.machine import Send
from hydra.actors.scheduling.kv_ledger import KvLedger
from hydra.actors.scheduling.row import Row, RowKey
from hydra.actors.scheduling.scheduler import RouteScheduler
from hydra.actors.sessions.sessions import Sessions, StartGeneration
from hydra.protocol import codec, codec_data
from hydra.protocol.batch import Step, token_ids
from hydra.protocol.ids import Epoch
from hydra.protocol.sampling import GREEDY, SamplingParams

IDS = token_ids(range(3, 200))


def opening_of(params):
    request = GenerateRequest(model_id="m", prompt=IDS, max_tokens=5, params=params, stop_ids=())
    (opening,) = (
        effect.message for effect in Sessions(5).handle(StartGeneration(1, request), 0.0) if isinstance(effect, Send)
    )
    return request, opening


def test_the_frontend_says_the_very_column_that_it_was_given():
    request, opening = opening_of(GREEDY)
    assert request.prompt is IDS and opening.history is IDS


def test_the_coordinator_composes_from_the_bytes_that_came():
    _, opening = opening_of(SamplingParams(presence_penalty=0.5))
    frames = codec.encode("broker", "sessions", opening)
    received = codec.decode(frames).message
    route = RouteScheduler(
        route=1, epoch=Epoch(1, 1), n_stages=1, credits=1, ledger=KvLedger(100, 4), max_batch_tokens=len(IDS)
    )
    route.add(Row(row=1, key=RowKey("f", 1), open=received, arrival=1))
    step, batch = route.compose(0.0)
    assert np.shares_memory(batch.tokens, received.history), "a chunk is a view of what was received"
    assert batch.opened[0].history is received.history
    sent = codec_data.decode_step(
        codec_data.encode_step(Step(route=1, epoch=Epoch(1, 1), step=step, batch=batch))
    ).batch
    assert sent.tokens.tolist() == sent.opened[0].history.tolist() == IDS.tolist()
