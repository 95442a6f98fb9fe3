"""The frontend's process: the HTTP server on the inherited socket, and the sessions behind it.

Never imports torch.
"""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import trio

from hydra.actors.families.frontend import Frontend, FrontendParts
from hydra.actors.families.lifeline import FAMILY_ENV
from hydra.complaint import Complaint, exit_code_of
from hydra.http.readiness import Readiness
from hydra.http.serve import HttpSettings, load_words, serve_cluster
from hydra.log.set_up import log_lines_lost
from hydra.processes.child_life import LINGER_AFTER_S, ChildLife
from hydra.processes.child_spec import FrontendSpec
from hydra.processes.peer_id import new_peer_id
from hydra.protocol.ids import NodeId
from hydra.protocol.wires.zmq_wire import ZmqWires
from hydra.text.cache import ChatTemplateFile, TokenizerCache, TokenizerFault


def _http_settings(spec: FrontendSpec) -> HttpSettings:
    return HttpSettings(
        fd=spec.http_fd,
        drain_timeout_s=spec.drain_timeout_s,
        max_body_bytes=spec.max_body_bytes,
        listening_host=urlsplit(spec.http_url).hostname or "",
        allowed_hosts=spec.allowed_hosts,
        allowed_origins=spec.allowed_origins,
        waits_for_loads=spec.while_loading == "wait",
    )


def _parts(spec: FrontendSpec, wires: ZmqWires) -> FrontendParts:
    return FrontendParts(
        node_id=NodeId(spec.node_id),
        spoke=wires.spoke(new_peer_id(spec.node_id), spec.router_addr, spec.broadcast_addr, spec.high_water_mark),
        host=socket.gethostname(),
        pid=os.getpid(),
        auth=os.environ.get("HYDRA_CLUSTER_JOIN_TOKEN", ""),
        family=os.environ.get(FAMILY_ENV, ""),
        max_replays=spec.max_replays,
        log_lines_lost=log_lines_lost,
    )


def frontend_main(spec: FrontendSpec, lifeline_fds: tuple[int, int], *, been_ready: bool = False) -> None:
    """The frontend child. Until the cluster has `been_ready`, a model whose words cannot be used ends it: nobody could
    ask for anything.
    """
    faults: list[TokenizerFault] = []

    async def main() -> None:
        wires = ZmqWires()
        life = ChildLife(lifeline_fds, spec.drain_timeout_s)
        frontend = Frontend(_parts(spec, wires))
        template = ChatTemplateFile(Path(spec.chat_template), spec.model_path) if spec.chat_template else None
        tokenizers = TokenizerCache(load_words, template)

        async def prove(everything: trio.CancelScope) -> None:
            fault = await Readiness(frontend, tokenizers).wait(None if been_ready else spec.model_path)
            if fault is None:
                life.lifeline.say_ready()
            else:
                faults.append(fault)
                everything.cancel()

        async def body() -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(frontend.run)
                nursery.start_soon(life.say_up, frontend.member)
                nursery.start_soon(prove, nursery.cancel_scope)
                await serve_cluster(frontend, _http_settings(spec), life.stopping, tokenizers)
                frontend.leave("stopped")
                await trio.sleep(LINGER_AFTER_S)
                nursery.cancel_scope.cancel()

        try:
            await life.run(body)
        finally:
            wires.close()

    trio.run(main)
    if faults:
        refusal = faults[0].refusal
        cause = f"requests to the model at {spec.model_path} could not be answered"
        raise Complaint(refusal.message, cause, faults[0].fix, exit_code_of(refusal.code))
