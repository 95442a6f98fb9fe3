"""The official clients on a real cluster: streams of three choices, run after run. `make test-clients`."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from hydra.store.models.demo_model import EOS_ID
from tests.e2e.cluster import RunningCluster, running_cluster

pytestmark = [pytest.mark.clients, pytest.mark.timeout(400)]

RUNS = 30
SOON = {str(EOS_ID): 3}  # the helper takes an answer that was cut for a fault, so these end by themselves
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def test_python_streams_three_choices(cluster: RunningCluster) -> None:
    model = cluster.model_id()
    for run in range(RUNS):
        texts = ["", "", ""]
        messages = [{"role": "user", "content": f"run {run}"}]
        with cluster.client.chat.completions.stream(
            model=model, messages=messages, n=3, max_tokens=1000, seed=run, logit_bias=SOON
        ) as stream:
            for event in stream:
                if event.type == "chunk":
                    for choice in event.chunk.choices:
                        texts[choice.index] += choice.delta.content or ""
            final = stream.get_final_completion()
        assert [choice.index for choice in final.choices] == [0, 1, 2]
        assert [choice.message.content for choice in final.choices] == texts


def test_node_streams_three_choices(cluster: RunningCluster) -> None:
    node = shutil.which("node")
    assert node, "this test needs Node.js"
    command = [node, "stream.mjs", f"{cluster.url}/v1", str(RUNS)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == RUNS


@pytest.mark.parametrize("kind", ["chat/completions", "completions"])
def test_every_event_is_one_line_for_a_reader_that_knows_all_of_unicodes(cluster: RunningCluster, kind: str) -> None:
    """An echo of the line ends that JSON does not escape by itself."""
    strange = "a\u2028b\u2029c\u0085d"
    body = {"model": cluster.model_id(), "stream": True, "max_tokens": 2}
    body |= (
        {"prompt": strange, "echo": True}
        if kind == "completions"
        else {"messages": [{"role": "user", "content": strange}]}
    )
    text = httpx2.post(f"{cluster.url}/v1/{kind}", json=body, timeout=60.0).content.decode()
    lines = [line for line in text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
