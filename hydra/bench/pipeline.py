"""P4: how much of its slowest stage's throughput a pipeline keeps, with timed stages and with real ones."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from hydra.actors.scheduling.scheduler import COHORT_ROWS_MAX
from hydra.bench.budget import Measured, median_ratio, spread
from hydra.bench.child import child
from hydra.bench.inner_cluster import inner_cluster
from hydra.bench.llama_dir import LlamaShape, write_llama
from hydra.protocol.ids import NodeId
from hydra.protocol.model.decoder_spec import plain_decoder, plain_layer
from hydra.protocol.model.encoding import F32
from hydra.protocol.model.model_spec import Described, ModelSpec, TensorRange
from hydra.protocol.model.part_size import stored_size
from hydra.protocol.wires.wire import CommandHub
from hydra.store.models.library import LocalLibrary

STAGES = (2, 4, 8)
STEP_S = 0.010
SESSION_TOKENS = 48
TORCH_SHAPE = LlamaShape(layers=8, hidden=512, intermediate=1408, heads=8, kv_heads=2)
FREE_S = 3.0


@attrs.frozen
class TimedLibrary:
    """A model of nothing, with as many layers as there are stages."""

    layers: int

    def describe(self, model_path: str) -> Described:
        spec = ModelSpec(
            architecture="Timed", fingerprint="0" * 16, hidden=64, vocab=256, max_positions=1024, tied=False,
            decoder=plain_decoder(self.layers, plain_layer(n_heads=1, n_kv_heads=1, head_dim=64, intermediate=64)),
            stored_dtype="float32", layer_sizes=(stored_size(1_000_000, F32),) * self.layers,
            embedding_size=stored_size(1000, F32), head_size=stored_size(1000, F32), norm_size=stored_size(64, F32),
            bos_id=None, eos_ids=(),
        )  # fmt: skip
        return Described(model_path=model_path, default_id="timed", spec=spec, tensors=())

    def slice_ranges(self, described: Described, first_layer: int, end_layer: int) -> tuple[TensorRange, ...]:
        return ()


def _sessions(stages: int) -> int:
    """One full micro-batch per stage, and one on its way back."""
    return (stages + 1) * COHORT_ROWS_MAX


def measure_timed(*, rounds: int) -> Measured:
    """P4a: the worst number of stages counts."""
    detail: dict[str, object] = {}
    ratios: list[float] = []
    for stages in STAGES:
        pairs = trio.run(_timed, stages, rounds)
        ratios.append(median_ratio(pairs))
        detail[f"{stages} stages"] = {
            "ratio": round(ratios[-1], 3),
            "tokens_per_s": round(statistics.median(ours for ours, _ in pairs)),
            "slowest_alone_per_s": round(statistics.median(alone for _, alone in pairs)),
            "rounds": spread(pairs),
        }
    return Measured(ratio=min(ratios), detail={"step_ms": 1000 * STEP_S, "rows": COHORT_ROWS_MAX, **detail})


async def _timed(stages: int, rounds: int) -> list[tuple[float, float]]:
    def command(node: NodeId, hub: CommandHub) -> list[str]:
        return ["hydra.bench.timed_worker", node, hub.command_addr, hub.broadcast_addr, str(STEP_S)]

    pairs: list[tuple[float, float]] = []
    async with inner_cluster(TimedLibrary(stages), "timed", stages, command) as cluster:
        for number in range(rounds + 1):
            ours = await cluster.tokens_per_s(_sessions(stages), SESSION_TOKENS)
            alone = COHORT_ROWS_MAX * await trio.to_thread.run_sync(_sleeps_per_s)
            if number:
                pairs.append((ours, alone))
    return pairs


def _sleeps_per_s() -> float:
    """The stage alone: a sleep is always a little longer than asked for."""
    began_s = time.perf_counter()
    for _ in range(50):
        time.sleep(STEP_S)
    return 50 / (time.perf_counter() - began_s)


def measure_torch(scratch: Path, *, rounds: int) -> Measured:
    """P4b: two stages of one thread each, against the same work in two processes that wait for nobody."""
    directory = write_llama(scratch / "pipeline", TORCH_SHAPE)
    cut, layers, cohorts = TORCH_SHAPE.layers // 2, TORCH_SHAPE.layers, _sessions(2) // COHORT_ROWS_MAX
    with (
        child("hydra.bench.free_stage", directory, 0, cut, COHORT_ROWS_MAX, cohorts) as first,
        child("hydra.bench.free_stage", directory, cut, layers, COHORT_ROWS_MAX, cohorts) as second,
    ):

        def free_per_s() -> float:
            """Tokens per second of the slower of the two, both at work."""
            for stage in (first, second):
                stage.tell(FREE_S)
            return COHORT_ROWS_MAX * min(float(first.hear()), float(second.hear()))

        pairs = trio.run(_torch, directory, free_per_s, rounds)
    detail = {
        "layers": layers,
        "rows": COHORT_ROWS_MAX,
        "tokens_per_s": round(statistics.median(ours for ours, _ in pairs)),
        "free_per_s": round(statistics.median(free for _, free in pairs)),
        "rounds": spread(pairs),
    }
    return Measured(ratio=median_ratio(pairs), detail=detail)


async def _torch(directory: Path, free_per_s: Callable[[], float], rounds: int) -> list[tuple[float, float]]:
    def command(node: NodeId, hub: CommandHub) -> list[str]:
        argv = ["hydra", "worker", "--node-id", node, "--coordinator", hub.command_addr]
        argv += ["--broadcast", hub.broadcast_addr, "--device", "cpu", "--pipeline-port", "0", "--threads", "1"]
        return [*argv, "--memory-gb", "2"]

    pairs: list[tuple[float, float]] = []
    async with inner_cluster(LocalLibrary(), str(directory), 2, command) as cluster:
        for number in range(rounds + 1):
            ours = await cluster.tokens_per_s(_sessions(2), SESSION_TOKENS)
            free = await trio.to_thread.run_sync(free_per_s)  # beside the loop, where the coordinator must beat on
            if number:
                pairs.append((ours, free))
    return pairs
