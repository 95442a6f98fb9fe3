"""With what a coordinator begins: what a former life left, and what this `up` says."""

import attrs
import pytest

from hydra.actors.families.coordinator import SavedState
from hydra.actors.planning.desired_model import DesiredModel
from hydra.actors.planning.policies import POLICIES
from hydra.processes.coordinator import remembered_state
from hydra.processes.state_dir import begin_anew, write_state
from hydra.protocol.settings.cluster import ClusterSettings
from hydra.protocol.settings.model import ModelSettings


@attrs.frozen
class Spec:
    """What is read of a CoordinatorSpec here."""

    state_dir: str
    model: ModelSettings


def begun(tmp_path, replicas=1):
    return remembered_state(Spec(str(tmp_path), ModelSettings(path="/models/m", replicas=replicas))).desired


def test_a_first_start_wants_as_many_replicas_as_it_was_told(tmp_path):
    assert begun(tmp_path, 3) == (DesiredModel("/models/m", replicas=3),)


@pytest.mark.parametrize(("new_up", "replicas"), [(False, 2), (True, 4)], ids=["the same up goes on", "a new up"])
def test_only_a_new_up_changes_how_many_there_are(tmp_path, new_up, replicas):
    write_state(tmp_path, SavedState(desired=(DesiredModel("/models/m", replicas=2), DesiredModel("/models/other"))))
    if new_up:
        begin_anew(tmp_path)
    assert begun(tmp_path, 4) == (DesiredModel("/models/m", replicas=replicas), DesiredModel("/models/other"))


@pytest.mark.parametrize("new_up", [False, True], ids=["the same up goes on", "a new up"])
def test_only_a_new_up_changes_how_the_weights_are_held(tmp_path, new_up):
    former = DesiredModel("/models/m", dtype="float32", quantize="int8")
    write_state(tmp_path, SavedState(desired=(former,)))
    if new_up:
        begin_anew(tmp_path)
    told = ModelSettings(path="/models/m", dtype="bfloat16", quantize="int4")
    (desired,) = remembered_state(Spec(str(tmp_path), told)).desired
    assert desired == (attrs.evolve(former, dtype="bfloat16", quantize="int4") if new_up else former)


def test_the_policy_of_a_cluster_is_one_that_there_is():
    assert ClusterSettings().policy in POLICIES
