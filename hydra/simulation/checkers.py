"""What must be true of a simulated cluster: of every answer, and once nobody asks for anything."""

from hydra.simulation.chat import Chat
from hydra.simulation.inspector import parts_of
from hydra.simulation.journal_check import check_journal
from hydra.simulation.pocket_model import pocket_reply
from hydra.simulation.scene import Scene


def check_answer(scene: Scene, chat: Chat, spare: bool = False) -> None:
    """The answer is the oracle's, whole, with the right ending, once; `spare`: its end may be an error.

    Where the oracle says that there is no next token, the right ending is the error that says so.
    """
    who = f"chat {chat.number}"
    answer, finish = pocket_reply(chat.prompt, chat.max_tokens, scene.shape.layers, chat.stop_ids, chat.params)
    seen = chat.tokens
    assert seen == answer[: len(seen)], f"{who} was told {seen}, the oracle says {answer}"
    assert chat.ends == 1, f"{who} ended {chat.ends} times"
    if not chat.left and not spare:
        ended: str | None = chat.finish
        if finish == "not_finite" and chat.refusal is not None:
            ended = chat.refusal.code
        else:
            assert chat.refusal is None, f"{who} was refused: {chat.refusal}"
        assert (seen, ended) == (answer, finish), f"{who}: {len(seen)} of {len(answer)}, {ended}"


def check_quiet(scene: Scene) -> None:
    """Nobody asks for anything: nothing may be held for anybody."""
    assert not scene.faults, f"a process died of {scene.faults[0]!r}"
    assert scene.watch is None or not scene.watch.tried or not scene.watch.repeated, scene.watch.repeated
    contained = scene.contained_in_the_dead + sum(node.contained() for node in scene.nodes.values() if node.alive)
    assert not contained, f"{contained} messages made an actor raise"
    check_journal(scene.nodes["coordinator"].family.journal.ring.all())
    broker = scene.nodes["coordinator"].family.broker
    assert not broker._known and not broker._arrivals, f"the broker still knows {list(broker._known)}"
    for model in broker._models.values():
        assert not model.waiting
        model.waiting.check()
        assert not model.waiting._requests, "a row is counted that is not there"
        for scheduler in (route.scheduler for route in model.routes.values()):
            assert not scheduler.rows and not scheduler.flights, "a row outlived its session"
            scheduler.ledger.check()
            assert scheduler.ledger.blocks_free == scheduler.ledger.blocks_total, "a KV block is held"
    for name, node in scene.nodes.items():
        if name.startswith("f"):
            assert len(node.family.sessions) == 0, f"{name} still has sessions"
            assert not node.family._slots
        if name.startswith("w") and node.alive:
            for fence in node.family.line.board.all():
                open_rows = node.family.line.open_rows(fence.route, fence.epoch) if fence.open else 0
                assert open_rows == 0, f"{name} has {open_rows} rows open"
        if node.alive and node.family is not None:
            for actor in node.family.actor_host._cells.values():
                for part in parts_of(actor.machine):
                    part.check()
    check_balance(scene)


def check_balance(scene: Scene) -> None:
    network = scene.network
    assert network.sent == network.delivered + network.dropped + network.in_flight, "messages went missing"
