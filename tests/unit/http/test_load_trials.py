"""A load is over when the model's words have been read too, whether somebody waits for it or not."""

import attrs
import pytest
import trio

from hydra.http.app import make_app
from hydra.http.load_trials import JOBS_MAX, LoadTrials
from hydra.protocol.refusal import Refusal, refuse
from hydra.simulation.asgi_client import ask
from hydra.text.cache import TokenizerCache

JOB = "/api/models/jobs/load-1-1"
LOAD = {"model_path": "/x"}
NO_TOKENIZER = refuse("bad_model", "tokenizer.json cannot be read")
NO_TEMPLATE = Refusal(code="invalid_value", message="the chat template makes no sense", param="messages")


@pytest.fixture
def read(cluster, shutdown, words):
    """An app, and what reading words comes to: changed by the test."""

    class Read:
        said = None
        times = 0

        async def load(self, path, template):
            self.times += 1
            if isinstance(self.said, Exception):
                raise self.said
            return words if self.said is None else attrs.evolve(words, templates={"default": self.said})

        def __init__(self):
            self.tokenizers = TokenizerCache(self.load)
            self.trials = LoadTrials(cluster, self.tokenizers)
            self.app = make_app(
                cluster, max_body_bytes=100_000, shutdown=shutdown, tokenizers=self.tokenizers, trials=self.trials
            )

    return Read()


WRONG = [(NO_TOKENIZER, "tokenizer.json cannot be read; put"), (NO_TEMPLATE, "makes no sense; mend the template")]


@pytest.mark.parametrize(("said", "message"), WRONG)
async def test_a_load_that_is_waited_for_is_refused_with_a_remedy(cluster, read, said, message):
    read.said = said
    answer = await ask(read.app, "POST", "/api/models/load", LOAD)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (400, "bad_model") and message in error["message"]
    assert cluster.unloaded == ["m"]


@pytest.mark.parametrize(("said", "message"), WRONG)
@pytest.mark.parametrize("state", ["loading", "ready"])
async def test_a_load_that_goes_on_by_itself_fails_with_a_remedy(cluster, read, said, message, state, autojump_clock):
    read.said = said
    assert (await ask(read.app, "POST", "/api/models/load", LOAD | {"wait": False})).status == 202
    cluster.job = attrs.evolve(cluster.job, state=state)
    with trio.move_on_after(5):
        await read.trials.run()
    assert cluster.unloaded == ["m"]
    for _ in range(2):
        job = (await ask(read.app, "GET", JOB)).json()
        assert (job["state"], job["error"]["code"]) == ("failed", "bad_model") and message in job["error"]["message"]
    (listed,) = (await ask(read.app, "GET", "/api/models/jobs")).json()["jobs"]
    assert listed == job


async def test_a_job_is_not_ready_before_its_words_are(cluster, read):
    """Whoever asks first is told the truth, although nobody has judged yet."""
    read.said = NO_TOKENIZER
    await ask(read.app, "POST", "/api/models/load", LOAD | {"wait": False})
    cluster.job = attrs.evolve(cluster.job, state="ready")
    assert (await ask(read.app, "GET", JOB)).json()["state"] == "failed" and cluster.unloaded == ["m"]


@pytest.mark.parametrize("state", ["loading", "ready", "failed", "cancelled"])
async def test_a_job_with_good_words_is_as_the_cluster_says(cluster, read, state, autojump_clock):
    await ask(read.app, "POST", "/api/models/load", LOAD | {"wait": False})
    cluster.job = attrs.evolve(cluster.job, state=state)
    with trio.move_on_after(5):
        await read.trials.run()
    job = (await ask(read.app, "GET", JOB)).json()
    assert (job["state"], job["error"], cluster.unloaded) == (state, None, [])


async def test_a_verdict_waits_until_the_model_is_known(cluster, read, autojump_clock):
    read.said = NO_TOKENIZER
    cluster.gone = True
    await ask(read.app, "POST", "/api/models/load", LOAD | {"wait": False})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read.trials.run)
        await trio.sleep(5)
        assert read.times == 0
        cluster.gone = False
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert cluster.unloaded == ["m"] and read.times == 1


@pytest.mark.parametrize("way", ["refused", "unloaded"])
async def test_what_is_mended_and_loaded_again_is_read_again(cluster, read, way):
    """At the same place and within the same second, as far as its card says."""
    if way == "refused":
        read.said = NO_TOKENIZER
        assert (await ask(read.app, "POST", "/api/models/load", LOAD)).status == 400
    else:
        assert (await ask(read.app, "POST", "/api/models/load", LOAD)).status == 200
        await ask(read.app, "POST", "/api/models/unload", {"model_id": "m"})
    cluster.gone, read.said = False, None
    assert (await ask(read.app, "POST", "/api/models/load", LOAD)).status == 200
    assert read.times == 2


async def test_loads_that_never_end_are_forgotten_in_time(cluster, read):
    cluster.gone = True
    for number in range(3 * JOBS_MAX):
        read.trials.begin(f"load-{number}", "m")
    cluster.gone, read.said = False, NO_TOKENIZER
    await read.trials.judge()
    job = attrs.evolve(cluster.job, state="ready", job="load-0")
    assert (await read.trials.verdicts([job])) == [job]
    (oldest,) = await read.trials.verdicts([attrs.evolve(job, job=f"load-{2 * JOBS_MAX}")])
    assert oldest.state == "failed", "the oldest of those that are remembered"
