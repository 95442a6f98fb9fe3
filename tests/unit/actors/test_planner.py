"""Plans and epochs: from nodes and wishes to a route, and to the next one when something breaks."""

import attrs
import pytest

from hydra.actors.core.facts import (
    FrontendJoined,
    FrontendLost,
    ModelGone,
    ModelKnown,
    ModelStalled,
    NodeJoined,
    NodeLost,
    NodeSuspect,
    RouteDown,
    RouteServed,
    RouteUp,
    StepVanished,
    TermRaised,
    Undelivered,
)
from hydra.actors.core.machine import CancelTimer, Received, Send, SetTimer, Tell, TimerFired
from hydra.actors.planning.desired_model import (
    CheckSource,
    Describe,
    DesiredModel,
    DesiredModelFailed,
    NotDescribed,
    Recover,
    SaveState,
    SourceChecked,
    WasDescribed,
)
from hydra.actors.planning.plan_settings import PlanSettings
from hydra.actors.planning.planner import Planner
from hydra.actors.planning.reach import DialledOut, DialOut
from hydra.actors.planning.startup_quorum import GATHER_S
from hydra.protocol.endpoint import Endpoint
from hydra.protocol.ids import Address, Epoch
from hydra.protocol.messages.membership import DeviceOffer, Held
from hydra.protocol.messages.models import JobsReply, LoadModel, ModelReply, ModelsChanged, Rebalance, UnloadModel
from hydra.protocol.messages.plans import (
    Activate,
    Dial,
    Dialled,
    DropSlice,
    LoadFailed,
    LoadSlice,
    Ready,
    RouteBroken,
    SliceLoaded,
    Unanswered,
)
from hydra.protocol.model.decoder_spec import LengthRule, plain_decoder, plain_layer
from hydra.protocol.model.encoding import F32
from hydra.protocol.model.model_spec import Described, ModelSpec
from hydra.protocol.model.part_size import stored_size
from hydra.protocol.model.rope_spec import RopeSpec
from hydra.protocol.model.source import Directory, HubCommit, Peers
from hydra.protocol.refusal import Refusal
from hydra.protocol.settings.cluster import ClusterSettings
from hydra.protocol.settings.engine import EngineSettings
from hydra.protocol.settings.model import ModelSettings

GB = 10**9
ASKER = Address("f-1", "asks")
SPEC = ModelSpec(
    architecture="LlamaForCausalLM",
    fingerprint="abc",
    hidden=1024,
    vocab=32000,
    max_positions=1024,
    decoder=plain_decoder(12, plain_layer(n_heads=16, n_kv_heads=4, head_dim=64, intermediate=2816)),
    tied=False,
    stored_dtype="float32",
    layer_sizes=(stored_size(100_000_000, F32),) * 12,  # 0.4 GB each in float32
    embedding_size=stored_size(32000 * 1024, F32),
    head_size=stored_size(32000 * 1024, F32),
    norm_size=stored_size(1024, F32),
    bos_id=1,
    eos_ids=(2,),
)
MODEL = Described(model_path="/models/m", default_id="m", spec=SPEC, tensors=())


def joined(node, *, gigabytes=8.0, life=1, held=(), dtypes=("float32",), store_addr=None):
    memory = int(gigabytes * GB)
    return NodeJoined(
        node=node,
        peer=f"{node}-{life}",
        generation=life,
        offer=DeviceOffer(device="cpu", name=node, dtypes=dtypes, memory_total_bytes=memory, memory_free_bytes=memory),
        pipeline_addr=Endpoint(f"tcp://{node}-{life}"),
        held=held,
        term_seen=0,
        store_addr=store_addr,
    )


class Hall:
    """A planner, what it has ordered, and workers that do as they are told when asked to."""

    def __init__(self, store_addr=None, max_model_len=0):
        settings = PlanSettings(
            cluster=ClusterSettings(reserved_vram_gb=1.0),
            engine=EngineSettings(recovery_deadline=60.0),
            model=ModelSettings(max_model_len=max_model_len),
        )
        self.planner = Planner(
            term=3, policy=settings, ranges=lambda *_: (), results_addr=Endpoint("tcp://results"), store_addr=store_addr
        )
        self.now_s = 0.0
        self.filtered = set()  # (peer or "coordinator", address): nobody answers
        self.silent = set()  # peers that do not say what they found
        self.source_fault = ""
        self.epochs = []
        self.saved = []

    def tell(self, event):
        """What comes of it once everybody has dialled whom it should, at once: but not `silent` ones."""
        effects = [effect for made in self._dialled(self.planner.handle(event, self.now_s)) for effect in made]
        self.saved += [e for e in effects if isinstance(e, SaveState)]
        self.epochs += sorted({order.epoch for order in orders(effects).values()})
        return effects

    def _dialled(self, effects):
        yield [effect for effect in effects if not _of_dialling(effect)]
        for effect in effects:
            if isinstance(effect, DialOut):
                back = DialledOut(effect.ask, self._unanswered("coordinator", effect.addrs))
                yield from self._dialled(self.planner.handle(back, self.now_s))
            elif isinstance(effect, CheckSource):
                yield from self._dialled(
                    self.planner.handle(SourceChecked(effect.model_id, self.source_fault), self.now_s)
                )
        for to, order in sent(effects, Dial):
            if to.peer not in self.silent:
                dialled = Dialled(
                    ask=order.ask, unanswered=self._unanswered(to.peer, order.step_addrs + order.store_addrs)
                )
                yield from self._dialled(self.planner.handle(Received(Address(to.peer, "scout"), dialled), self.now_s))

    def _unanswered(self, source, addrs):
        filtered = [addr for addr in addrs if (source, addr.addr) in self.filtered]
        return tuple(Unanswered(addr=addr, reason="no answer") for addr in filtered)

    def hears(self, message, sender=ASKER):
        return self.tell(Received(sender, message))

    def begin(self, *, nodes=(), expected=2):
        return self.tell(Recover((DesiredModel("/models/m"),), expected, nodes, 6.0))

    def loads(self, effects, *, blocks=500):
        """Every stage that was given a slice loads it."""
        out = []
        for peer, order in orders(effects).items():
            loaded = SliceLoaded(
                route=order.route, epoch=order.epoch, kv_blocks_max=blocks, weight_bytes=1, read_bytes=1, load_s=0.1
            )
            out += self.hears(loaded, Address(peer, "stage"))
        return out

    def warms(self, effects):
        out = []
        for to, plan in sent(effects, Activate):
            out += self.hears(Ready(route=plan.route, epoch=plan.epoch), to)
        return out

    def serves(self, effects):
        """All the way from LoadSlice to RouteUp."""
        (up,) = facts(self.warms(self.loads(effects)), RouteUp)
        return up

    def running(self, *nodes, **settings):
        """A cluster that serves over these nodes."""
        self.begin(expected=len(nodes))
        self.tell(WasDescribed("/models/m", MODEL))
        effects = [self.tell(joined(node, **settings)) for node in nodes][-1]
        return self.serves(effects)

    def phase(self):
        return self.planner.models()[0][1]


def _of_dialling(effect):
    if isinstance(effect, SetTimer | CancelTimer):
        return isinstance(effect.key, tuple) and effect.key[0] == "dial"
    return isinstance(effect, DialOut | CheckSource) or (isinstance(effect, Send) and isinstance(effect.message, Dial))


def sent(effects, kind):
    return [(e.to, e.message) for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def orders(effects):
    return {to.peer: order for to, order in sent(effects, LoadSlice)}


def layers(effects):
    return {peer: (order.first_layer, order.end_layer) for peer, order in orders(effects).items()}


def facts(effects, kind):
    return [e.fact for e in effects if isinstance(e, Tell) and isinstance(e.fact, kind)]


def answers(effects):
    return [message for _, message in sent(effects, ModelReply)]


def test_from_nodes_and_a_wish_to_a_route():
    hall = Hall()
    effects = hall.begin()
    assert Describe("/models/m") in effects and SetTimer("patience", 6.0) in effects
    assert facts(effects, ModelKnown)[0].model_id == "m"
    assert not orders(hall.tell(WasDescribed("/models/m", MODEL)))
    assert hall.tell(joined("a")) == []
    effects = hall.tell(joined("b"))
    assert layers(effects) == {"a-1": (0, 6), "b-1": (6, 12)}
    assert {order.epoch for order in orders(effects).values()} == {Epoch(3, 1)}

    one, other = orders(effects).items()
    assert not sent(
        hall.loads([e for e in effects if isinstance(e, Send) and e.to.peer == one[0]], blocks=90), Activate
    )
    activates = hall.loads([e for e in effects if isinstance(e, Send) and e.to.peer == other[0]], blocks=80)
    plans = {to.peer: plan for to, plan in sent(activates, Activate)}
    assert {plan.kv_blocks for plan in plans.values()} == {80}, "the least of any stage"
    assert [(plans[p].next_addr, plans[p].stage_index) for p in ("a-1", "b-1")] == [
        (Endpoint("tcp://b-1"), 0),
        (Endpoint("tcp://results"), 1),
    ]
    assert {plan.credits for plan in plans.values()} == {4}

    to_first, to_last = sent(activates, Activate)
    assert not facts(hall.hears(Ready(route=1, epoch=Epoch(3, 1)), to_first[0]), RouteUp)
    (up,) = facts(hall.hears(Ready(route=1, epoch=Epoch(3, 1)), to_last[0]), RouteUp)
    assert (up.nodes, up.first_addr, up.kv_blocks, up.credits) == (("a", "b"), Endpoint("tcp://a-1"), 80, 4)
    assert up.max_model_len == 1024 and hall.phase() == "ready"


def test_nodes_that_came_before_the_description_are_planned_with_it():
    hall = Hall()
    hall.begin(expected=1)
    hall.tell(joined("a"))
    assert layers(hall.tell(WasDescribed("/models/m", MODEL))) == {"a-1": (0, 12)}


def test_patience_ends_and_whoever_is_there_is_used():
    hall = Hall()
    hall.begin(expected=3)
    hall.tell(WasDescribed("/models/m", MODEL))
    assert hall.tell(joined("a")) == []
    assert layers(hall.tell(TimerFired("patience"))) == {"a-1": (0, 12)}


def test_where_nobody_said_how_many_will_come_joins_are_gathered_until_none_comes_for_a_while():
    hall = Hall()
    hall.begin(expected=0)
    hall.tell(WasDescribed("/models/m", MODEL))
    hall.now_s += 1.0
    assert hall.tell(joined("a")) == [SetTimer("patience", hall.now_s + GATHER_S)]
    hall.now_s += 1.5
    assert hall.tell(joined("b")) == [SetTimer("patience", hall.now_s + GATHER_S)]
    assert sorted(layers(hall.tell(TimerFired("patience")))) == ["a-1", "b-1"]
    assert not orders(hall.tell(joined("late"))), "a spare, as everywhere else"
    assert sorted(layers(hall.tell(NodeLost(node="a", generation=1, why="exit")))) == ["b-1", "late-1"]


def test_they_are_gathered_too_when_the_first_comes_long_after_the_start():
    hall = Hall()
    hall.begin(expected=0)
    stalled = [*hall.tell(WasDescribed("/models/m", MODEL)), *hall.tell(TimerFired("patience"))]
    assert facts(stalled, ModelStalled)[-1].refusal.code == "no_workers", "who asks meanwhile is told so"
    hall.now_s += 60.0
    assert SetTimer("patience", hall.now_s + GATHER_S) in hall.tell(joined("a"))
    hall.tell(joined("b"))
    assert sorted(layers(hall.tell(TimerFired("patience")))) == ["a-1", "b-1"]


def test_a_coordinator_that_knows_its_former_nodes_gathers_nobody():
    hall = Hall()
    hall.begin(nodes=("a", "b"), expected=0)
    hall.tell(WasDescribed("/models/m", MODEL))
    assert hall.tell(joined("a")) == []
    assert sorted(layers(hall.tell(joined("b")))) == ["a-1", "b-1"]


def test_a_new_coordinator_waits_for_the_nodes_it_knew():
    hall = Hall()
    hall.begin(nodes=("a", "b"), expected=1)
    hall.tell(WasDescribed("/models/m", MODEL))
    assert hall.tell(joined("a")) == [] and hall.tell(joined("x")) == []
    held = (Held(fingerprint="abc", dtype="float32", layers=tuple(range(4))),)
    effects = hall.tell(joined("b", held=held))
    assert CancelTimer("patience") in effects and layers(effects)["b-1"][0] == 0


def test_a_new_up_waits_for_its_own_workers_beside_the_nodes_it_knew():
    hall = Hall()
    hall.begin(nodes=("a",), expected=2)
    hall.tell(WasDescribed("/models/m", MODEL))
    assert hall.tell(joined("a")) == [], "one that it knew is back, one of two workers is here"
    assert sorted(layers(hall.tell(joined("b")))) == ["a-1", "b-1"]


def test_a_node_of_a_former_life_is_awaited_for_a_while_and_then_done_without():
    hall = Hall()
    begun = hall.tell(Recover((DesiredModel("/models/m"),), 2, ("a", "gone"), 60.0, 4.5))
    assert {effect.key: effect.at_s for effect in begun if isinstance(effect, SetTimer)} == {
        "patience": hall.now_s + 60.0,
        "awaited": hall.now_s + 4.5,
    }
    hall.tell(WasDescribed("/models/m", MODEL))
    assert hall.tell(joined("a")) == [] and hall.tell(joined("b")) == []
    assert sorted(layers(hall.tell(TimerFired("awaited")))) == ["a-1", "b-1"]


def test_when_the_former_nodes_are_given_up_the_new_workers_are_still_awaited():
    hall = Hall()
    hall.tell(Recover((DesiredModel("/models/m"),), 2, ("gone",), 60.0, 4.5))
    hall.tell(WasDescribed("/models/m", MODEL))
    assert hall.tell(TimerFired("awaited")) == [] and hall.tell(joined("a")) == []
    assert sorted(layers(hall.tell(joined("b")))) == ["a-1", "b-1"]
    assert hall.tell(TimerFired("awaited")) == [], "it may come late"


def test_state_is_saved_before_anybody_is_ordered():
    hall = Hall()
    hall.begin()
    assert hall.saved[0].term == 3
    hall.tell(WasDescribed("/models/m", MODEL))
    hall.tell(joined("a"))
    effects = hall.tell(joined("b"))
    kinds = [type(e.message) if isinstance(e, Send) else type(e) for e in effects]
    assert kinds.index(SaveState) < kinds.index(LoadSlice)
    assert hall.saved[-1] == SaveState(3, (DesiredModel("/models/m"),), ("a", "b"))


def test_a_lost_stage_costs_an_epoch_and_the_survivor_takes_all():
    hall = Hall()
    up = hall.running("a", "b")
    effects = hall.tell(NodeLost(node="b", generation=1, why="exit"))
    assert facts(effects, RouteDown) == [RouteDown(model_id="m", route=up.route, death=True)]
    assert effects[0] == Tell("broker", RouteDown(model_id="m", route=up.route, death=True)), "before any order"
    assert layers(effects) == {"a-1": (0, 12)}
    assert next(iter(orders(effects).values())).epoch > up.epoch
    assert hall.serves(effects).nodes == ("a",)


def test_survivors_keep_the_layers_they_hold():
    hall = Hall()
    hall.running("a", "b", "c")
    hall.tell(joined("d"))
    effects = hall.tell(NodeLost(node="a", generation=1, why="exit"))
    assert layers(effects) == {"d-1": (0, 4), "b-1": (4, 8), "c-1": (8, 12)}


def test_a_loss_while_loading_starts_over():
    hall = Hall()
    hall.begin()
    hall.tell(WasDescribed("/models/m", MODEL))
    hall.tell(joined("a"))
    first = hall.tell(joined("b"))
    second = hall.tell(NodeLost(node="a", generation=1, why="exit"))
    assert facts(second, RouteDown) == [], "the broker never heard of it"
    assert layers(second) == {"b-1": (0, 12)}
    assert hall.loads(first) == [], "answers to an older epoch are nothing"
    assert hall.serves(second).nodes == ("b",)


def test_a_node_in_another_life_is_another_node():
    hall = Hall()
    hall.running("a", "b")
    effects = hall.tell(NodeLost(node="b", generation=1, why="exit"))
    assert hall.tell(joined("b", life=2)) == [], "spare until the next plan"
    assert hall.serves(effects).nodes == ("a",)


def test_what_does_not_fit_waits_for_a_node():
    hall = Hall()
    up = hall.running("a", "b", gigabytes=4.5)
    effects = hall.tell(NodeLost(node="a", generation=1, why="exit"))
    assert facts(effects, RouteDown)[0].death and not orders(effects)
    assert SetTimer(("recovery", 1), 60.0) in effects and hall.phase() == "waiting"
    effects = hall.tell(joined("a", gigabytes=4.5, life=2))
    assert {order.route for order in orders(effects).values()} == {up.route}
    assert layers(effects)["b-1"] == (6, 12), "b holds them still"
    assert CancelTimer(("recovery", 1)) not in effects
    again = hall.serves(effects)
    assert again.epoch > up.epoch
    assert CancelTimer(("recovery", 1)) in hall.tell(RouteServed(model_id="m", epoch=again.epoch)), "not before"


def test_the_recovery_deadline_ends_the_waiting_but_not_the_wish():
    hall = Hall()
    hall.running("a", "b", gigabytes=4.5)
    hall.tell(NodeLost(node="a", generation=1, why="exit"))
    (gone,) = facts(hall.tell(TimerFired(("recovery", 1))), ModelGone)
    assert (gone.refusal.code, gone.forget) == ("recovery_deadline", False)
    assert "GB" in gone.refusal.message, "it says what was missing"
    assert hall.serves(hall.tell(joined("c", gigabytes=4.5))).nodes


def test_a_late_deadline_does_not_hit_a_model_that_is_back():
    hall = Hall()
    hall.running("a", "b")
    assert hall.tell(TimerFired(("recovery", 1))) == [] and hall.phase() == "ready"


def test_a_node_that_joins_is_spare_until_a_rebalance():
    hall = Hall()
    up = hall.running("a", "b")
    assert hall.tell(joined("c")) == []
    effects = hall.hears(Rebalance(ask=4))
    assert facts(effects, RouteDown) == [RouteDown(model_id="m", route=up.route, death=False)]
    assert set(layers(effects)) == {"a-1", "b-1", "c-1"}
    assert answers(effects) == [ModelReply(ask=4, state="rebalancing")]
    assert hall.serves(effects).nodes and hall.phase() == "ready"


def test_a_stage_that_is_no_longer_needed_is_dropped():
    hall = Hall()
    hall.running("a", "b")
    hall.tell(NodeSuspect(node="b", suspect=True))
    effects = hall.hears(Rebalance(ask=4))
    ((to, drop),) = sent(effects, DropSlice)
    assert to.peer == "b-1" and drop.epoch == orders(effects)["a-1"].epoch


def test_a_rebalance_that_does_not_fit_leaves_a_working_route_alone():
    hall = Hall()
    hall.running("a", "b", gigabytes=4.5)
    hall.tell(NodeSuspect(node="b", suspect=True))
    effects = hall.hears(Rebalance(ask=4))
    assert facts(effects, RouteDown) == [] and hall.phase() == "ready"
    assert answers(effects) == [ModelReply(ask=4, state="unchanged")]


def test_a_suspect_gets_no_new_work_until_it_is_heard():
    hall = Hall()
    hall.running("a", "b", "c", gigabytes=4.5)
    hall.tell(NodeSuspect(node="b", suspect=True))
    effects = hall.tell(NodeLost(node="c", generation=1, why="exit"))
    assert not orders(effects) and hall.phase() == "waiting"
    effects = hall.tell(NodeSuspect(node="b", suspect=False))
    assert set(layers(effects)) == {"a-1", "b-1"}, "nobody else will come to start it"


def test_a_rebalance_with_nothing_to_do_says_so():
    assert answers(Hall().hears(Rebalance(ask=9))) == [ModelReply(ask=9, state="unchanged")]


@pytest.mark.parametrize(
    "trouble",
    [
        lambda up: Received(Address("a-1", "stage"), RouteBroken(route=up.route, epoch=up.epoch, why="gap", side="in")),
        lambda up: StepVanished(route=up.route, epoch=up.epoch, why="nobody has it", stage_index=1),
    ],
)
def test_a_broken_epoch_is_followed_by_another_over_the_same_stages(trouble):
    hall = Hall()
    up = hall.running("a", "b")
    effects = hall.tell(trouble(up))
    assert facts(effects, RouteDown) == [RouteDown(model_id="m", route=up.route, death=False)]
    assert layers(effects) == {"a-1": (0, 6), "b-1": (6, 12)}
    assert hall.tell(trouble(up)) == [], "the trouble of a former epoch"


def test_a_link_that_breaks_again_is_left_alone_longer_each_time_and_another_order_is_taken():
    hall = Hall()
    up = hall.running("a", "b")
    effects = hall.hears(gap_at("b", up), Address("b-1", "stage"))
    assert layers(effects) == {"a-1": (0, 6), "b-1": (6, 12)}, "once may be chance, and its hops were dialled anew"
    up = hall.serves(effects)
    effects = hall.hears(gap_at("b", up), Address("b-1", "stage"))
    assert layers(effects) == {"b-1": (0, 6), "a-1": (6, 12)}, "never again over the link that broke twice"


def gap_at(node, up):
    return RouteBroken(route=up.route, epoch=up.epoch, why="gap", side="in")


def test_epochs_strictly_increase_whatever_happens():
    hall = Hall()
    up = hall.running("a", "b")
    hall.tell(joined("c"))
    up = hall.serves(hall.hears(Rebalance(ask=1)))
    up = hall.serves(hall.hears(gap_at("b", up), Address("b-1", "stage")))
    hall.tell(TermRaised(term=9))
    assert hall.saved[-1].term == 9
    up = hall.serves(hall.tell(NodeLost(node="a", generation=1, why="exit")))
    assert up.epoch.term == 9
    (drop, *_) = sent(hall.hears(UnloadModel(ask=2, model_id="m")), DropSlice)
    everything = [*hall.epochs, drop[1].epoch]
    assert everything == sorted(set(everything)) and len(everything) == 5


def test_no_room_for_one_sequence_is_a_refusal_with_the_numbers():
    hall = Hall()
    hall.begin(expected=1)
    hall.tell(joined("a"))
    hall.hears(LoadModel(ask=7, model_path="/models/x", model_id="x"))
    effects = hall.tell(WasDescribed("/models/x", attrs.evolve(MODEL, model_path="/models/x")))
    (told,) = answers(hall.loads(effects, blocks=3))
    assert told.refusal.code == "does_not_fit" and "a has room for 3 KV blocks" in told.refusal.message


def asked(hall, **changes):
    hall.tell(Recover((), 1, (), 6.0))
    hall.tell(joined("a"))
    return hall.hears(LoadModel(ask=7, model_path="/models/m", **changes))


def test_who_asked_for_a_model_is_answered_when_it_is_ready():
    hall = Hall()
    assert answers(asked(hall)) == []
    effects = hall.tell(WasDescribed("/models/m", MODEL))
    told = answers(hall.warms(hall.loads(effects)))
    assert told == [ModelReply(ask=7, model_id="m", state="ready")]


def test_or_at_once_without_wait():
    hall = Hall()
    assert answers(asked(hall, wait=False)) == [ModelReply(ask=7, model_id="m", state="loading", job="load-3-1")]
    effects = hall.tell(WasDescribed("/models/m", MODEL))
    assert answers(hall.warms(hall.loads(effects))) == []


def test_wrong_total_layers_are_refused_by_name():
    hall = Hall()
    asked(hall, total_layers=32)
    effects = hall.tell(WasDescribed("/models/m", MODEL))
    (told,) = answers(effects)
    assert (told.refusal.code, told.refusal.param) == ("invalid_value", "total_layers")
    assert "32" in told.refusal.message and "12" in told.refusal.message
    assert not orders(effects) and hall.planner.models() == () and hall.saved[-1].desired == ()


def test_right_total_layers_are_fine():
    hall = Hall()
    asked(hall, total_layers=12)
    assert orders(hall.tell(WasDescribed("/models/m", MODEL)))


def test_a_directory_that_cannot_be_read_is_told():
    hall = Hall()
    asked(hall)
    no = Refusal(code="model_not_found", message="no such directory")
    effects = hall.tell(NotDescribed("/models/m", no))
    assert answers(effects) == [ModelReply(ask=7, model_id="m", refusal=no)]
    assert facts(effects, ModelGone)[0].forget and hall.planner.models() == ()


def test_a_stage_that_cannot_load_ends_the_wish_with_its_reason():
    hall = Hall()
    asked(hall)
    hall.tell(WasDescribed("/models/m", MODEL))
    no = Refusal(code="bad_model", message="a lie in a header")
    effects = hall.hears(LoadFailed(route=1, epoch=Epoch(3, 1), refusal=no), Address("a-1", "stage"))
    assert answers(effects) == [ModelReply(ask=7, model_id="m", refusal=no)]
    assert [to.peer for to, _ in sent(effects, DropSlice)] == ["a-1"]


def test_a_failure_of_an_older_epoch_is_nothing():
    hall = Hall()
    up = hall.running("a", "b")
    hall.hears(Rebalance(ask=1))
    no = Refusal(code="bad_model", message="late")
    assert hall.hears(LoadFailed(route=up.route, epoch=up.epoch, refusal=no), Address("a-1", "stage")) == []


def test_a_failure_of_an_epoch_that_a_loss_ended_does_not_end_the_model():
    hall = Hall()
    hall.begin()
    hall.tell(WasDescribed("/models/m", MODEL))
    hall.tell(joined("a", gigabytes=4.5))
    hall.tell(joined("b", gigabytes=4.5))
    hall.tell(NodeLost(node="b", generation=1, why="exit"))
    no = Refusal(code="does_not_fit", message="late")
    assert hall.hears(LoadFailed(route=1, epoch=Epoch(3, 1), refusal=no), Address("a-1", "stage")) == []
    assert hall.phase() == "waiting"


def test_a_first_load_that_fits_nowhere_is_refused():
    hall = Hall()
    hall.tell(Recover((), 1, (), 6.0))
    hall.tell(joined("a", gigabytes=2))
    hall.hears(LoadModel(ask=7, model_path="/models/m"))
    (told,) = answers(hall.tell(WasDescribed("/models/m", MODEL)))
    assert told.refusal.code == "does_not_fit" and "a: layers 0-11" in told.refusal.message


def test_a_second_model_of_the_same_name_is_refused():
    hall = Hall()
    hall.running("a", "b")
    (told,) = answers(hall.hears(LoadModel(ask=8, model_path="/elsewhere/m")))
    assert told.refusal.param == "model_id" and hall.phase() == "ready"


def test_unload_frees_every_stage_and_forgets_the_wish():
    hall = Hall()
    up = hall.running("a", "b")
    effects = hall.hears(UnloadModel(ask=5, model_id="m"))
    assert answers(effects) == [ModelReply(ask=5, model_id="m", state="unloaded")]
    assert [(to.peer, drop.epoch > up.epoch) for to, drop in sent(effects, DropSlice)] == [("a-1", True), ("b-1", True)]
    assert facts(effects, ModelGone)[0].forget and hall.saved[-1].desired == ()
    (told,) = answers(hall.hears(UnloadModel(ask=6, model_id="m")))
    assert told.refusal.code == "model_not_found"


def test_without_any_node_a_wish_waits():
    hall = Hall()
    hall.tell(Recover((), 0, (), 6.0))
    hall.tell(TimerFired("patience"))
    hall.hears(LoadModel(ask=7, model_path="/models/m"))
    effects = hall.tell(WasDescribed("/models/m", MODEL))
    assert answers(effects) == [] and hall.phase() == "waiting"
    (told,) = answers(hall.tell(TimerFired(("recovery", 1))))
    assert told.refusal.code == "recovery_deadline"


def test_frontends_hear_of_every_change():
    hall = Hall()
    effects = hall.tell(FrontendJoined(peer="f-1"))
    assert sent(effects, ModelsChanged) == [(Address("f-1", "asks"), ModelsChanged(models=()))]
    hall.begin(expected=1)
    hall.tell(joined("a"))
    states = []
    effects = hall.tell(WasDescribed("/models/m", MODEL))
    states += [message.models[0].state for _, message in sent(effects, ModelsChanged)]
    effects = hall.warms(hall.loads(effects))
    states += [message.models[0].state for _, message in sent(effects, ModelsChanged)]
    effects = hall.tell(NodeLost(node="a", generation=1, why="exit"))
    states += [message.models[0].state for _, message in sent(effects, ModelsChanged)]
    assert states[-3:] == ["loading", "ready", "degraded"]
    hall.tell(FrontendLost(peer="f-1"))
    assert sent(hall.tell(joined("a", life=2)), ModelsChanged) == []


@pytest.mark.parametrize(
    ("offers", "desired", "dtype"),
    [
        ((("float32", "bfloat16"), ("float32", "bfloat16")), None, "float32"),
        ((("float16",), ("float16", "float32")), None, "float16"),
        ((("float32", "float16"), ("float32", "float16")), "float16", "float16"),
    ],
)
def test_the_dtype_is_one_that_every_device_runs(offers, desired, dtype):
    hall = Hall()
    hall.tell(Recover((DesiredModel("/models/m", dtype=desired),), 2, (), 6.0))
    hall.tell(WasDescribed("/models/m", MODEL))
    hall.tell(joined("a", dtypes=offers[0]))
    assert {o.dtype for o in orders(hall.tell(joined("b", dtypes=offers[1]))).values()} == {dtype}


def test_a_wish_of_the_start_is_tried_again_and_said_aloud():
    hall = Hall()
    refusal = Refusal(code="bad_model", message="config.json makes no sense")
    hall.planner.handle(Recover((DesiredModel("/models/w"),), 1, (), 6.0), 0.0)
    effects = hall.planner.handle(NotDescribed("/models/w", refusal), 1.0)
    assert DesiredModelFailed(refusal) in effects
    again = [effect for effect in effects if isinstance(effect, SetTimer) and effect.key == ("describe", "w")]
    assert Describe("/models/w") in hall.planner.handle(TimerFired(again[0].key), again[0].at_s)


@pytest.mark.parametrize(("setting", "served"), [(0, 1024), (1024, 1024), (1000, 1000)])
def test_a_model_is_served_with_the_length_that_is_set(setting, served):
    hall = Hall(max_model_len=setting)
    assert hall.running("a").max_model_len == served
    assert [card.max_model_len for card in hall.planner.cards()] == [served]


def test_a_length_beyond_the_model_is_refused_with_the_numbers_and_never_clipped():
    hall = Hall(max_model_len=1025)
    hall.begin(expected=1)
    effects = hall.tell(WasDescribed("/models/m", MODEL))
    (refusal,) = [effect.refusal for effect in effects if isinstance(effect, DesiredModelFailed)]
    assert (refusal.code, refusal.param) == ("invalid_value", "max_model_len")
    assert "1025" in refusal.message and "1024" in refusal.message
    assert not orders(hall.tell(joined("a"))) and hall.planner.cards() == ()
    assert not facts(effects, ModelKnown), "nobody is told of a length"


@pytest.mark.parametrize("wait", [True, False])
def test_nor_is_it_for_a_model_that_is_loaded_later(wait):
    hall = Hall(max_model_len=1025)
    hall.tell(Recover((), 1, (), 6.0))
    hall.tell(joined("a"))
    hall.hears(LoadModel(ask=7, model_path="/models/m", wait=wait))
    effects = hall.tell(WasDescribed("/models/m", MODEL))
    assert not orders(effects) and hall.planner.models() == ()
    assert [gone.refusal.param for gone in facts(effects, ModelGone)] == ["max_model_len"]
    assert [answer.refusal.param for answer in answers(effects)] == ["max_model_len"] * wait


def test_a_dtype_that_no_device_runs_is_said_aloud_at_the_start():
    hall = Hall()
    hall.tell(Recover((DesiredModel("/models/m", dtype="bfloat16"),), 1, (), 6.0))
    hall.tell(WasDescribed("/models/m", MODEL))
    failed = [effect.refusal for effect in hall.tell(joined("a")) if isinstance(effect, DesiredModelFailed)]
    assert [(refusal.code, refusal.param) for refusal in failed] == [("unsupported", "dtype")]


# ---------------------------------------------------------------- where a slice may be had


PATH = Directory("/models/m")


def peers(*addrs):
    return Peers(tuple(map(Endpoint, addrs)))


def sources(effects):
    return {peer: order.sources for peer, order in orders(effects).items()}


def with_three_lenders(held=()):
    """A hall in which a, b and c have loaded the model, and lend what they hold."""
    hall = Hall(store_addr=Endpoint("tcp://c"))
    hall.begin(expected=3)
    hall.tell(WasDescribed("/models/m", MODEL))
    for node in "ab":
        hall.tell(joined(node, store_addr=Endpoint(f"tcp://store-{node}"), held=held))
    return hall, hall.tell(joined("c", store_addr=Endpoint("tcp://store-c"), held=held))


def test_a_first_load_is_had_from_the_path_or_from_the_coordinator():
    _, effects = with_three_lenders()
    assert set(sources(effects).values()) == {(PATH, peers("tcp://c"))}


def test_whoever_has_loaded_some_of_a_model_lends_it_to_the_others_and_not_to_itself():
    hall, effects = with_three_lenders()
    hall.warms(hall.loads(effects))
    again = sources(hall.hears(Rebalance(ask=1)))
    assert again["a-1"] == (PATH, peers("tcp://c", "tcp://store-b", "tcp://store-c"))
    assert again["b-1"] == (PATH, peers("tcp://c", "tcp://store-a", "tcp://store-c"))


def test_a_slice_that_is_still_loading_is_not_lent():
    hall, effects = with_three_lenders()
    (peer, order), *_ = orders(effects).items()
    hall.hears(
        SliceLoaded(route=order.route, epoch=order.epoch, kv_blocks_max=9, weight_bytes=1, read_bytes=1, load_s=0.1),
        Address(peer, "stage"),
    )
    lost = hall.tell(NodeLost(node="c", generation=1, why="x")) + hall.hears(Rebalance(ask=1))
    assert sources(lost)["b-1"] == (PATH, peers("tcp://c", f"tcp://store-{peer[0]}"))


def test_layers_that_a_worker_brings_along_are_lent_and_those_of_another_model_not():
    def brought(fingerprint):
        _, effects = with_three_lenders(held=(Held(fingerprint=fingerprint, dtype="float32", layers=(1, 2)),))
        return sources(effects)["b-1"]

    assert brought(SPEC.fingerprint)[1:] == (peers("tcp://c", "tcp://store-a", "tcp://store-c"),)
    assert brought("another")[1:] == (peers("tcp://c"),)


def test_neither_the_lost_nor_the_suspect_lend():
    hall, effects = with_three_lenders()
    hall.warms(hall.loads(effects))
    hall.tell(NodeSuspect(node="c", suspect=True))
    after = sources(hall.tell(NodeLost(node="a", generation=1, why="x")))
    assert after["b-1"] == (PATH, peers("tcp://c"))


def test_nobody_lends_where_nobody_says_so():
    hall = Hall()
    hall.begin(expected=1)
    hall.tell(WasDescribed("/models/m", MODEL))
    assert sources(hall.tell(joined("a")))["a-1"] == (PATH,)


def test_a_hub_model_is_had_from_a_worker_nearby_then_from_the_hub_and_last_through_the_coordinator():
    hall = Hall(store_addr=Endpoint("tcp://c"))
    hall.begin(expected=2)
    hub = HubCommit("org/name", "0" * 40)
    hall.tell(WasDescribed("/models/m", attrs.evolve(MODEL, sources=(hub,))))
    hall.tell(joined("a", store_addr=Endpoint("tcp://store-a")))
    effects = hall.tell(joined("b", store_addr=Endpoint("tcp://store-b")))
    assert sources(effects) == {"a-1": (hub, peers("tcp://c")), "b-1": (hub, peers("tcp://c"))}
    hall.warms(hall.loads(effects))
    again = sources(hall.hears(Rebalance(ask=1)))
    assert again["a-1"] == (peers("tcp://store-b"), hub, peers("tcp://c"))


def hall_for(decoder):
    spec = attrs.evolve(SPEC, decoder=decoder, stored_dtype="bfloat16")
    hall = Hall()
    hall.begin(expected=1)
    hall.tell(WasDescribed("/models/m", attrs.evolve(MODEL, spec=spec)))
    return hall


def test_a_model_that_overflows_float16_runs_in_float32():
    old_card = joined("a", gigabytes=64.0, dtypes=("float32", "float16"))
    for overflows, dtype in ((False, "float16"), (True, "float32")):
        effects = hall_for(attrs.evolve(SPEC.decoder, float16_overflows=overflows)).tell(old_card)
        assert {order.dtype for order in orders(effects).values()} == {dtype}


def test_the_broker_is_told_the_length_rule():
    rope = RopeSpec(kind="longrope", theta=1e4, dim=64, original_max_positions=512)
    layer = SPEC.decoder.layer(0)
    layer = attrs.evolve(layer, attention=attrs.evolve(layer.attention, rope=rope))
    hall = hall_for(plain_decoder(12, layer))
    up = hall.serves(hall.tell(joined("a", gigabytes=64.0)))
    assert up.length_rule == LengthRule(limit=512, reopens=True)


def test_an_order_that_is_too_large_fails_that_load_and_says_why():
    hall = Hall()
    hall.begin(expected=2)
    hall.tell(Recover((), 1, (), 6.0))
    hall.tell(joined("a"))
    hall.tell(joined("b"))
    hall.hears(LoadModel(ask=7, model_path="/models/x", model_id="x"))
    effects = hall.tell(WasDescribed("/models/x", MODEL))
    ((to, order), *_) = sent(effects, LoadSlice)
    refusal = Refusal(code="invalid_value", message="a LoadSlice of 9000000 bytes")
    effects = hall.tell(Undelivered(to, order, refusal))
    (told,) = answers(effects)
    assert told.refusal.code == "unsupported" and "a LoadSlice of 9000000 bytes" in told.refusal.message
    assert facts(effects, ModelGone)[0].model_id == "x"
    assert hall.tell(Undelivered(to, order, refusal)) == [], "it is over already"


def test_an_answer_that_is_too_large_becomes_a_refusal():
    refusal = Refusal(code="invalid_value", message="a JobsReply of 9000000 bytes")
    ((to, told),) = sent(Hall().tell(Undelivered(ASKER, JobsReply(ask=3), refusal)), JobsReply)
    assert (to, told.ask, told.refusal.code) == (ASKER, 3, "invalid_value")
    assert Hall().tell(Undelivered(ASKER, ModelsChanged(models=()), refusal)) == []
