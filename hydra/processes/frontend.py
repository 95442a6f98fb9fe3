"""The frontend's process: the HTTP server on the inherited socket, and the sessions behind it.

Never imports torch.
"""

from pathlib import Path
from urllib.parse import urlsplit

import trio

from hydra.actors.families.frontend import Frontend, FrontendParts
from hydra.complaint import Complaint, exit_code_of
from hydra.http.readiness import Readiness
from hydra.http.serve import HttpListener, load_words, serve_cluster
from hydra.processes.child_life import LINGER_AFTER_S, ChildLife
from hydra.processes.child_spec import FrontendSpec
from hydra.processes.own_identity import new_peer_id, own_identity
from hydra.protocol.wires.zmq_wire import ZmqWires
from hydra.text.cache import ChatTemplateFile, TokenizerCache, TokenizerFault


def _parts(spec: FrontendSpec, wires: ZmqWires) -> FrontendParts:
    zmq = spec.zmq
    return FrontendParts(
        identity=own_identity("frontend", spec.node_id, spec.cluster.join_token),
        spoke=wires.spoke(new_peer_id(spec.node_id), zmq.router_addr, zmq.broadcast_addr, zmq.high_water_mark),
        max_replays=spec.engine.max_replays,
    )


def frontend_main(spec: FrontendSpec, lifeline_fds: tuple[int, int], *, been_ready: bool = False) -> None:
    """The frontend child. Until the cluster has `been_ready`, a model whose words cannot be used ends it: nobody could
    ask for anything.
    """
    faults: list[TokenizerFault] = []

    async def main() -> None:
        wires = ZmqWires()
        life = ChildLife(lifeline_fds, spec.server.drain_timeout)
        frontend = Frontend(_parts(spec, wires))
        model = spec.model
        template = ChatTemplateFile(Path(model.chat_template), model.path) if model.chat_template else None
        tokenizers = TokenizerCache(load_words, template)
        host = urlsplit(spec.http_url).hostname or ""
        listener = HttpListener(fd=spec.http_fd, host=host, server=spec.server)

        async def prove(everything: trio.CancelScope) -> None:
            fault = await Readiness(frontend, tokenizers).wait(None if been_ready else model.path)
            if fault is None:
                life.lifeline.say_ready()
            else:
                faults.append(fault)
                everything.cancel()

        async def body() -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(frontend.run)
                nursery.start_soon(life.say_up, frontend.membership.member)
                nursery.start_soon(prove, nursery.cancel_scope)
                await serve_cluster(frontend, listener, life.stopping, tokenizers)
                frontend.membership.leave("stopped")
                await trio.sleep(LINGER_AFTER_S)
                nursery.cancel_scope.cancel()

        try:
            await life.run(body)
        finally:
            wires.close()

    trio.run(main)
    if faults:
        refusal = faults[0].refusal
        cause = f"requests to the model at {spec.model.path} could not be answered"
        raise Complaint(refusal.message, cause, faults[0].fix, exit_code_of(refusal.code))
