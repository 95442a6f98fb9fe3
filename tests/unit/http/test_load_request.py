"""What `POST /api/models/load` may ask for reaches the cluster; what it may not is a 400 that names the parameter."""

import pytest

from hydra.simulation.asgi_client import ask

LOAD = "/api/models/load"


async def test_what_is_asked_for_reaches_the_cluster(cluster, quick_app):
    asked = {"model_path": "/m", "model_id": "x", "dtype": "bfloat16", "quantize": "int4", "replicas": 2, "wait": False}
    assert (await ask(quick_app, "POST", LOAD, asked)).status == 202
    assert cluster.loaded == [asked | {"total_layers": None}]


async def test_what_is_left_out_is_as_ever(cluster, quick_app):
    await ask(quick_app, "POST", LOAD, {"model_path": "/m", "quantize": None})
    assert cluster.loaded[0]["quantize"] == "none" and cluster.loaded[0]["replicas"] == 1


@pytest.mark.parametrize("quantize", ["int3", 4, ["int4"], True])
async def test_there_are_two_ways_to_quantise(cluster, quick_app, quantize):
    answer = await ask(quick_app, "POST", LOAD, {"model_path": "/m", "quantize": quantize})
    assert answer.status == 400 and answer.json()["error"]["param"] == "quantize"
    assert "none, int8, int4" in answer.json()["error"]["message"] and not cluster.loaded
