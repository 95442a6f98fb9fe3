"""The theatre of real processes: `python -m hydra up`, workers started by hand, signals, and lines that can be cut.

The oracle is the same cluster before anything was injected: greedy, in float32, with the built-in model, and only
prompts whose answers keep a margin between the best and the second token at every step.
"""

import json
import os
import random
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx2
import psutil
import trio

from hydra.processes.held_port import HeldPort
from hydra.protocol.loopback import LOOPBACK
from hydra.store.models.demo_model import DEMO_VOCAB, LAYERS, ensure_demo_model
from scenarios.playbill import Playbill
from scenarios.processes import Processes, hold_port, processes
from scenarios.real_reader import RealReader
from scenarios.tcp_proxy import TcpProxy
from scenarios.theatre import BLIND, Cast, Reader, Sight

READY_WITHIN_S = 90.0
ASK_WITHIN_S = 5.0
POISON = DEMO_VOCAB - 1  # a special token, which the built-in model never draws
MARGIN = 1e-3  # between the logits of the best and the second token; two correct runs differ by some 1e-6
ROUNDS_MAX = 20
ELSEWHERE = "127.0.0.2"  # where a distant worker says that it listens: the near end of its line
TAIL_LINES = 25


@attrs.define(eq=False)
class RealTheatre:
    """See `Theatre`. Workers under `up` are called w0, w1, ..., those by hand h0, h1, ..."""

    cast: Cast
    bill: Playbill
    rng: random.Random
    nursery: trio.Nursery
    processes: Processes
    lines: dict[str, list[TcpProxy]]
    client: httpx2.AsyncClient
    model_id: str
    n_layers: int = LAYERS
    answer_tokens: int = 300
    long_answer_tokens: int = 1900
    poison: int = POISON
    _answers: dict[tuple[int, ...], list[int]] = attrs.field(factory=dict, init=False)
    _stopped: dict[str, int] = attrs.field(factory=dict, init=False)
    _asked: int = attrs.field(default=0, init=False)

    @property
    def by_hand(self) -> tuple[str, ...]:
        return tuple(name for name in self.processes.started if name != "up")

    # ------------------------------------------------------------ readers

    async def prompts(self, n: int) -> list[tuple[int, ...]]:
        for _ in range(ROUNDS_MAX):
            lengths = [5 + 9 * (number % 8) for number in range(len(self._answers), n)]
            candidates = [tuple(self.rng.randrange(0x20, 0x7F) for _ in range(length)) for length in lengths]
            async with trio.open_nursery() as nursery:
                for prompt in candidates:
                    nursery.start_soon(self._rehearse, prompt)
            if len(self._answers) >= n:
                return list(self._answers)[:n]
        raise AssertionError(f"near ties everywhere: only {len(self._answers)} of {n} prompts will do")

    def expected(self, prompt: tuple[int, ...], n_tokens: int) -> list[int]:
        return self._answers[prompt][:n_tokens]

    def ask(self, prompt: tuple[int, ...], max_tokens: int) -> Reader:
        self._asked += 1
        reader = RealReader(f"reader {self._asked}", prompt, max_tokens, self.client, self.model_id)
        self.nursery.start_soon(reader.run)
        return reader

    async def _rehearse(self, prompt: tuple[int, ...]) -> None:
        """Keeps the undisturbed answer, unless one of its steps is a near tie."""
        body = {
            "model": self.model_id, "prompt": list(prompt), "max_tokens": self.answer_tokens, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True, "logprobs": 2,
        }  # fmt: skip
        answer = await self.client.post("/v1/completions", json=body, timeout=60.0)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        for alternatives in choice["logprobs"]["top_logprobs"]:
            first, second, *_ = [*sorted(alternatives.values(), reverse=True), -9999.0]
            if len(alternatives) < 2 or first - second <= MARGIN:  # two tokens of one text count as a tie as well
                return
        self._answers[prompt] = choice["token_ids"]

    # ------------------------------------------------------------ what can be seen

    async def look(self) -> Sight:
        try:
            status = await self.client.get("/api/cluster/status", timeout=ASK_WITHIN_S)
            metrics = await self.client.get("/metrics", timeout=ASK_WITHIN_S)
        except httpx2.HTTPError:
            return BLIND
        if status.status_code != 200 or metrics.status_code != 200:
            return BLIND
        return _sight(status.json(), metrics.text)

    async def _pid(self, name: str) -> int:
        return (await self.look()).pids[name]

    # ------------------------------------------------------------ faults

    async def kill(self, name: str, *, returns: bool = True) -> None:
        pid = await self._pid(name)
        if not returns:
            self.bill.injected(f"SIGKILL of the parent of {name} (pid {self.processes.started[name].pid})")
            self.processes.started[name].kill()
        self.bill.injected(f"SIGKILL of {name} (pid {pid})")
        os.kill(pid, signal.SIGKILL)

    async def pause(self, name: str) -> None:
        self._stopped[name] = pid = await self._pid(name)
        self.bill.injected(f"SIGSTOP of {name} (pid {pid})")
        os.kill(pid, signal.SIGSTOP)

    async def resume(self, name: str) -> None:
        pid = self._stopped.pop(name)
        if not psutil.pid_exists(pid):
            self.bill.seen(f"pid {pid} is not there any more: its parent has killed it")
            return
        self.bill.injected(f"SIGCONT of {name} (pid {pid})")
        os.kill(pid, signal.SIGCONT)

    async def cut(self, name: str) -> None:
        self.bill.injected(f"{len(self.lines[name])} lines to {name} fall silent: commands, broadcast, steps")
        for line in self.lines[name]:
            line.cut()

    async def heal(self, name: str) -> None:
        self.bill.injected(f"the lines to {name} work again")
        for line in self.lines[name]:
            line.heal()

    async def rebalance(self) -> None:
        self.bill.injected("POST /api/cluster/rebalance")
        answer = await self.client.post("/api/cluster/rebalance", timeout=60.0)
        assert answer.status_code == 200, answer.text

    def poison_deaths(self) -> int:
        diary = diary_of(self.processes)
        return len(diary.read_text().splitlines()) if diary.exists() else 0

    # ------------------------------------------------------------ the end

    async def close(self) -> None:
        family = self.processes.family()
        told = await trio.to_thread.run_sync(self.processes.stop)
        lost = {name for name, code in told.items() if code == -signal.SIGKILL and name != "up"}  # for good, by a story
        wrong = {name: code for name, code in told.items() if code != 0 and name not in lost}
        assert not wrong, f"Ctrl-C ended with {wrong}"
        left = [pid for pid in family if psutil.pid_exists(pid)]
        assert not left, f"processes are left behind: {left}"
        self.bill.seen(f"Ctrl-C ends all {len(family)} processes with status 0")


def diary_of(running: Processes) -> Path:
    """Where mortal workers write a line before they die of poison."""
    return running.scratch / "poisoned"


def _sight(status: dict[str, Any], metrics: str) -> Sight:
    stages = {node["node_id"]: node["stages"] for node in status["nodes"]}
    held = {name: range(s[0]["first_layer"], s[0]["end_layer"]) for name, s in stages.items() if s}
    model = status["models"][0] if status["models"] else {}
    coordinator = next(p["pid"] for p in status["processes"] if p["role"] == "coordinator")
    return Sight(
        ready=status["ready"],
        epoch=model.get("epoch", ""),
        pids={"coordinator": coordinator} | {node["node_id"]: node["pid"] for node in status["nodes"]},
        layers=dict(sorted(held.items(), key=lambda item: item[1].start)),
        running=model.get("running", 0),
        waiting=model.get("waiting", 0),
        kv_blocks_held=model.get("kv_blocks_total", 0) - model.get("kv_blocks_free", 0),
        stale_dropped=_metric(metrics, "hydra_stale_dropped_total"),
        tokens_sent=_metric(metrics, "hydra_generated_tokens_total"),
    )


def _metric(text: str, name: str) -> int:
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in text.splitlines() if line.startswith(name))


# ---------------------------------------------------------------- the way up


@asynccontextmanager
async def open_real(cast: Cast, seed: int, bill: Playbill) -> AsyncIterator[RealTheatre]:
    """Up and ready. When the story fails, the end of what the processes wrote is in a note."""
    with tempfile.TemporaryDirectory(prefix="hydra-story-") as scratch, processes(Path(scratch)) as running:
        try:
            async with trio.open_nursery() as nursery:
                lines = await _start(cast, running, nursery)
                url = await _ready(running)
                running.family()
                async with httpx2.AsyncClient(base_url=url, limits=httpx2.Limits(max_connections=64)) as client:
                    listed = await client.get("/v1/models", timeout=30.0)
                    model_id = listed.json()["data"][0]["id"]
                    bill.begin()
                    rng = random.Random(f"story {seed}")
                    yield RealTheatre(cast, bill, rng, nursery, running, lines, client, model_id)
                    nursery.cancel_scope.cancel()
        except BaseException as error:
            tail = running.messages().splitlines()[-TAIL_LINES:]
            error.add_note("\n".join(["the last words of the processes:", *tail]))
            raise


async def _start(cast: Cast, running: Processes, nursery: trio.Nursery) -> dict[str, list[TcpProxy]]:
    """All processes; returns the lines of those that are distant."""
    by_hand = cast.workers if cast.mortal else cast.by_hand
    model = ensure_demo_model(running.scratch)
    running.start_up(model, cast.workers - by_hand, min_nodes=cast.workers)
    lines: dict[str, list[TcpProxy]] = {}
    for name in (f"h{number}" for number in range(by_hand)):
        if cast.distant:
            lines[name] = await _start_distant(name, running, nursery)
        elif cast.mortal:
            poison = ("--poison", str(POISON), "--diary", str(diary_of(running)))
            running.start_worker(name, *poison, program=("scenarios.poisoned_worker", "worker"))
        else:
            running.start_worker(name)
    return lines


async def _start_distant(name: str, running: Processes, nursery: trio.Nursery) -> list[TcpProxy]:
    """A worker that reaches the coordinator, and is reached by its neighbours, through lines of ours."""
    ports, steps = running.ports, hold_port()
    running.held.append(steps)
    commands = TcpProxy(hold_port(), LOOPBACK, ports.router.port)
    news = TcpProxy(hold_port(), LOOPBACK, ports.broadcast.port)
    lines = [commands, news, TcpProxy(HeldPort.take(ELSEWHERE, steps.port), LOOPBACK, steps.port)]
    for line in lines:
        await nursery.start(line.run)
    running.start_worker(
        name,
        *("--coordinator", f"tcp://{LOOPBACK}:{commands.at.port}", "--broadcast", f"tcp://{LOOPBACK}:{news.at.port}"),
        *("--pipeline-port", str(steps.port), "--bind", LOOPBACK, "--advertise", ELSEWHERE),
    )
    return lines


async def _ready(running: Processes) -> str:
    """The URL that `up` prints."""
    stdout = running.started["up"].stdout
    assert stdout is not None
    with trio.move_on_after(READY_WITHIN_S):
        line = await trio.to_thread.run_sync(partial(stdout.readline), abandon_on_cancel=True)
        assert line.startswith("ready http://"), f"up said {json.dumps(line)} instead of ready"
        return line.split()[1]
    raise AssertionError(f"up is not ready within {READY_WITHIN_S:.0f} s")
