"""Load jobs: how far each node is, how it ended, and what calling one off does."""

import attrs
import pytest

from hydra.actors.core.facts import ModelGone, NodeLost, RouteUp
from hydra.actors.core.machine import TimerFired
from hydra.actors.planning.desired_model import Describe, DesiredModel, LoadMoved, NotDescribed, Recover, WasDescribed
from hydra.actors.planning.load_jobs import JOBS_MAX
from hydra.protocol.ids import Address
from hydra.protocol.messages.models import (
    CancelJob,
    JobsReply,
    JobsRequest,
    LoadModel,
    ModelReply,
    NodeLoad,
    UnloadModel,
)
from hydra.protocol.messages.plans import DropSlice, LoadProgress, SliceLoaded
from hydra.protocol.model.model_spec import StoredFile
from hydra.protocol.model.source import HubCommit
from hydra.protocol.refusal import Refusal
from tests.unit.actors.test_planner import ASKER, MODEL, Hall, answers, facts, joined, orders, sent

HUB_ID = "org/m@main"
HUB_MODEL = attrs.evolve(
    MODEL,
    model_path="org/m@0123",
    sources=(HubCommit("org/m", "0123"),),
    files=(StoredFile(file="f.safetensors", size_bytes=9, tag="t"),),
    folder="/cache/org--m",
)


class Desk(Hall):
    """A hall with two nodes, in which somebody has asked for a Hub model."""

    def __init__(self, *, wait=False):
        super().__init__()
        self.tell(Recover((), 1, (), 6.0))
        for node in ("a", "b"):
            self.tell(joined(node))
        self.told = self.hears(LoadModel(ask=7, model_path=HUB_ID, wait=wait))

    def described(self):
        return self.tell(WasDescribed(HUB_ID, HUB_MODEL))

    def job(self, name="load-3-1"):
        (told,) = [message for _, message in sent(self.hears(JobsRequest(ask=8, job=name)), JobsReply)]
        assert told.refusal is None
        return told.jobs[0]

    def cancel(self, name="load-3-1"):
        effects = self.hears(CancelJob(ask=9, job=name))
        ((to, told),) = sent(effects, JobsReply)
        assert to == ASKER and told.ask == 9
        return effects, told

    def moves(self, effects, done, *, phase="fetching"):
        return {
            peer: self.hears(
                LoadProgress(route=order.route, epoch=order.epoch, bytes_done=done, bytes_total=10, phase=phase),
                Address(peer, "stage"),
            )
            for peer, order in orders(effects).items()
        }


def test_a_hub_model_goes_by_its_id_and_its_sources():
    status = Desk()
    assert answers(status.told) == [ModelReply(ask=7, model_id="org/m", state="loading", job="load-3-1")]
    assert Describe(HUB_ID) in status.told
    for order in orders(status.described()).values():
        assert order.sources == HUB_MODEL.sources and order.files == HUB_MODEL.files
    (card,) = status.planner.cards()
    assert (card.model_id, card.model_path, card.folder) == ("org/m", "org/m@0123", "/cache/org--m")
    assert status.saved[-1].desired == (DesiredModel(HUB_ID, pinned="org/m@0123"),)


def test_a_later_life_describes_the_commit_that_the_first_one_found():
    hall = Hall()
    effects = hall.tell(Recover((DesiredModel(HUB_ID, pinned="org/m@0123"),), 1, (), 6.0))
    assert Describe("org/m@0123") in effects and Describe(HUB_ID) not in effects
    hall.tell(joined("a"))
    assert orders(hall.tell(WasDescribed("org/m@0123", HUB_MODEL)))
    assert hall.planner.cards()[0].model_id == "org/m"


def test_a_job_shows_each_node_until_it_is_ready():
    status = Desk()
    assert (status.job().state, status.job().nodes, status.job().model_path) == ("loading", (), HUB_ID)
    effects = status.described()
    assert [node.state for node in status.job().nodes] == ["waiting", "waiting"]
    told = status.moves(effects, 4)
    fetching = NodeLoad(node_id="a", state="fetching", bytes_done=4, bytes_total=10)
    assert told["a-1"] == [LoadMoved("org/m", fetching)]
    assert status.job().nodes == (fetching, attrs.evolve(fetching, node_id="b"))
    status.moves(effects, 10, phase="reading")
    assert {node.state for node in status.job().nodes} == {"reading"}
    loaded = status.loads(effects)
    assert {node.state for node in status.job().nodes} == {"loaded"} and status.job().state == "loading"
    assert facts(status.warms(loaded), RouteUp)
    job = status.job()
    assert job.state == "ready" and {node.bytes_done for node in job.nodes} == {10} and job.refusal is None
    status.hears(UnloadModel(ask=1, model_id="org/m"))
    assert status.job() == job, "its last word stays"


def test_progress_of_another_epoch_is_nothing():
    status = Desk()
    effects = status.described()
    status.tell(NodeLost(node="b", generation=1, why="exit"))
    status.moves(effects, 4)
    assert not any(node.bytes_done for node in status.job().nodes)


def test_a_job_that_failed_says_why():
    status = Desk()
    no = Refusal(code="access_denied", message="accept the terms")
    status.tell(NotDescribed(HUB_ID, no))
    assert (status.job().state, status.job().refusal) == ("failed", no)


@pytest.mark.parametrize("wait", [True, False])
def test_a_job_that_is_called_off_drops_its_slices_and_its_wish(wait):
    status = Desk(wait=wait)
    order = next(iter(orders(status.described()).values()))
    effects, told = status.cancel()
    assert [(to.peer, drop.epoch > order.epoch) for to, drop in sent(effects, DropSlice)] == [
        ("a-1", True),
        ("b-1", True),
    ]
    assert told.jobs[0].state == "cancelled" and told.jobs[0].refusal.code == "cancelled"
    assert [answer.refusal.code for answer in answers(effects)] == (["cancelled"] if wait else [])
    assert facts(effects, ModelGone)[0].forget and status.saved[-1].desired == () and status.planner.models() == ()


def test_a_job_can_be_called_off_while_the_model_is_being_described():
    status = Desk()
    _, told = status.cancel()
    assert told.jobs[0].state == "cancelled"
    assert not orders(status.described())


def test_a_wish_of_the_start_can_be_called_off_and_is_not_tried_again():
    hall = Hall()
    hall.begin()
    (told,) = [m for _, m in sent(hall.hears(CancelJob(ask=1, job="load-3-1")), JobsReply)]
    assert told.jobs[0].state == "cancelled" and hall.saved[-1].desired == ()
    assert hall.tell(TimerFired(("again", 1))) == []


def test_what_is_ready_cannot_be_called_off():
    status = Desk()
    status.serves(status.described())
    effects, told = status.cancel()
    assert told.jobs[0].state == "ready" and len(effects) == 1 and status.phase() == "ready"


def test_an_unknown_job_is_refused():
    status = Desk()
    for message in (JobsRequest(ask=1, job="load-3-2"), CancelJob(ask=1, job="load-2-1")):
        (told,) = [m for _, m in sent(status.hears(message), JobsReply)]
        assert told.refusal.code == "job_not_found" and told.jobs == ()


def test_finished_jobs_are_forgotten_oldest_first_and_running_ones_never():
    status = Desk()
    for number in range(JOBS_MAX + 5):
        status.hears(LoadModel(ask=number, model_path="/x", wait=False))
        status.tell(NotDescribed("/x", Refusal(code="bad_model", message="no")))
    (told,) = [m for _, m in sent(status.hears(JobsRequest(ask=1)), JobsReply)]
    assert len(told.jobs) == JOBS_MAX
    assert told.jobs[0].job == "load-3-1" and told.jobs[-1].job == f"load-3-{JOBS_MAX + 6}"


def test_a_loaded_slice_ends_its_nodes_part():
    status = Desk()
    effects = status.described()
    order = orders(effects)["a-1"]
    loaded = SliceLoaded(
        route=order.route, epoch=order.epoch, kv_blocks_max=500, weight_bytes=1, read_bytes=1, load_s=0.1
    )
    status.hears(loaded, Address("a-1", "stage"))
    assert [node.state for node in status.job().nodes] == ["loaded", "waiting"]
