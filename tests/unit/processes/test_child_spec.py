"""A setting reaches every process as it was read: in its section, under its own name; a secret by no command line."""

import json
from pathlib import Path

import attrs
import pytest

from hydra.actors.families.coordinator import Coordinator, CoordinatorParts, SavedState
from hydra.processes.child_spec import (
    CoordinatorSpec,
    FrontendSpec,
    WorkerSpec,
    secrets_env,
    spec_from_json,
    spec_to_json,
)
from hydra.processes.cluster_lanes import PLACES
from hydra.processes.host_port import HostPort
from hydra.processes.local_workers import WorkerOptions
from hydra.processes.up import ClusterPorts, UpOptions, _children
from hydra.protocol.settings.setting import is_secret
from hydra.settings import CHOICES, SECTIONS, Settings
from hydra.simulation.memory_network import MemoryNetwork
from hydra.simulation.memory_wire import MemoryWires
from hydra.simulation.pocket_model import PocketLibrary

SPECS = {"_coordinator": CoordinatorSpec, "_worker": WorkerSpec, "_frontend": FrontendSpec}


def other_value(section, field):
    """One that is not the default."""
    if (section, field.name) in CHOICES:
        return next(choice for choice in CHOICES[section, field.name] if choice != field.default)
    kind = type(field.default)
    return {bool: not field.default, int: 7, float: 7.5, str: f"/{section}/{field.name}", tuple: ("a", "b")}[kind]


def settings_unlike_the_defaults():
    sections = {
        name: kind(**{field.name: other_value(name, field) for field in attrs.fields(kind)})
        for name, kind in SECTIONS.items()
    }
    return Settings(**sections)


def children_of(settings):
    """(its command, its spec as JSON) of each child that `up` starts."""
    lanes = {key: HostPort("0.0.0.0", 7000 + place) for key, place in PLACES.items()}
    worker = WorkerOptions(node_id="w0", device="cpu", memory_bytes=1, threads=2)
    ends = (HostPort("0.0.0.0", 7010), HostPort("0.0.0.0", 7011))
    held = ClusterPorts(lanes=lanes, workers=(ends,))
    options = UpOptions(workers=(worker,), state_dir=Path("/state"), lan=True)
    for _, command in _children(settings, options, held, 3, "http://127.0.0.1:1"):
        role, text = (command.argv[command.argv.index(word) + 1] for word in ("hydra", "--spec"))
        yield role, text.replace("{{", "{").replace("}}", "}")


SETTINGS = settings_unlike_the_defaults()
CHILDREN = dict(children_of(SETTINGS))


@pytest.mark.parametrize("role", SPECS)
def test_every_child_reads_every_section_that_it_is_given_as_the_parent_did(role):
    spec = spec_from_json(CHILDREN[role], SPECS[role], secrets_env(SETTINGS))
    given = {field.name for field in attrs.fields(type(spec))} & set(SECTIONS)
    assert {"zmq", "cluster", "model"} <= given
    for section in given - {"zmq"}:
        assert getattr(spec, section) == getattr(SETTINGS, section), section
    assert spec.zmq.high_water_mark == SETTINGS.zmq.high_water_mark
    host = "0.0.0.0" if role == "_coordinator" else "127.0.0.1"
    assert (spec.zmq.router_addr, spec.zmq.broadcast_addr) == (f"tcp://{host}:7000", f"tcp://{host}:7002")
    assert spec_from_json(spec_to_json(spec), SPECS[role], secrets_env(SETTINGS)) == spec


@pytest.mark.parametrize("role", SPECS)
def test_no_secret_is_on_a_command_line(role):
    spec = spec_from_json(CHILDREN[role], SPECS[role], {})
    for section in ("cluster", "model"):
        for field in attrs.fields(SECTIONS[section]):
            if is_secret(field):
                assert field.name not in json.loads(CHILDREN[role])[section]
                assert getattr(SETTINGS, section) and getattr(getattr(SETTINGS, section), field.name)
                assert not getattr(getattr(spec, section), field.name), "without the environment nobody knows it"
    assert secrets_env(Settings()) == {}


def test_a_spec_of_another_version_is_refused():
    values = json.loads(CHILDREN["_frontend"])
    values["server"]["new"] = 1
    with pytest.raises(Exception, match="FrontendSpec"):
        spec_from_json(json.dumps(values), FrontendSpec, {})


async def test_the_machines_of_a_coordinator_hold_the_sections_themselves():
    wires = MemoryWires(MemoryNetwork(None), "coordinator")
    cluster, engine, model = SETTINGS.cluster, SETTINGS.engine, SETTINGS.model
    parts = CoordinatorParts(
        hub=wires.hub("mem://commands", "mem://news"),
        lane=wires,
        results=wires.step_source("mem://results", 64),
        library=PocketLibrary(2),
        describe=None,
        check_source=None,
        dial=wires.dial,
        saved=SavedState(),
        save=lambda state: None,
        on_wish_failed=lambda refusal: None,
        expected_workers=0,
        patience_s=0.0,
        cluster=cluster,
        engine=engine,
        model=model,
    )
    made = Coordinator(parts)
    assert made.registry.cluster is cluster and made.broker.limits is engine
    policy = made.planner.policy
    assert policy.cluster is cluster and policy.engine is engine and policy.model is model
