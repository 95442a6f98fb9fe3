"""Where lanes listen: any ports on loopback, known ones off it, and one option for a second cluster."""

import pytest

from hydra.complaint import Complaint
from hydra.processes.cluster_lanes import near, plan_lanes
from hydra.processes.host_port import HostPort
from hydra.processes.port_range import PortRange
from hydra.protocol.settings.zmq import ZmqSettings


def ports(planned) -> list[int]:
    return [address.port for address in [*planned.lanes.values(), *(end for pair in planned.workers for end in pair)]]


def hosts(planned) -> set[str]:
    return {address.host for address in [*planned.lanes.values(), *(end for pair in planned.workers for end in pair)]}


def test_on_loopback_only_the_known_two_are_fixed():
    planned = plan_lanes(ZmqSettings(), 2, lan=False, ports=None)
    assert ports(planned) == [5555, 5557, 0, 0, 0, 0, 0, 0] and hosts(planned) == {"127.0.0.1"}


def test_off_loopback_all_are_known():
    planned = plan_lanes(ZmqSettings(), 2, lan=True, ports=None)
    assert ports(planned) == [5555, 5557, 5558, 5559, 5560, 5561, 5562, 5563] and hosts(planned) == {"*"}
    assert {near(address).host for address in planned.lanes.values()} == {"127.0.0.1"}


def test_one_address_off_loopback_takes_the_others_with_it():
    planned = plan_lanes(ZmqSettings(router_addr="tcp://10.0.0.5:7000"), 1, lan=False, ports=None)
    assert ports(planned) == [7000, 7002, 7003, 7004, 7005, 7006] and hosts(planned) == {"10.0.0.5"}


def test_what_somebody_chose_is_kept():
    zmq = ZmqSettings(
        router_addr="tcp://0.0.0.0:5555", results_addr="tcp://10.0.0.5:9000", store_addr="tcp://10.0.0.5:0"
    )
    planned = plan_lanes(zmq, 0, lan=False, ports=None)
    assert planned.lanes["results_addr"] == HostPort("10.0.0.5", 9000)
    assert planned.lanes["store_addr"] == HostPort("10.0.0.5", 0)
    assert planned.lanes["broadcast_addr"] == HostPort("0.0.0.0", 5557)
    any_ports = plan_lanes(ZmqSettings(router_addr="tcp://*:0"), 1, lan=False, ports=None)
    assert ports(any_ports) == [0, 5557, 0, 0, 0, 0]


def test_a_lane_left_on_loopback_is_refused():
    zmq = ZmqSettings(router_addr="tcp://10.0.0.5:5555", store_addr="tcp://127.0.0.1:9000")
    with pytest.raises(Complaint, match="store_addr") as caught:
        plan_lanes(zmq, 0, lan=False, ports=None)
    assert caught.value.exit_code == 2 and "10.0.0.5" in caught.value.fix


@pytest.mark.parametrize("lan", [False, True])
def test_a_row_of_ports_is_for_all_lanes(lan):
    planned = plan_lanes(ZmqSettings(), 2, lan=lan, ports=PortRange.parse("5655-5663"))
    assert ports(planned) == [5655, 5657, 5658, 5659, 5660, 5661, 5662, 5663]
    assert ports(plan_lanes(ZmqSettings(), 2, lan=lan, ports=PortRange.parse("0"))) == [0] * 8


def test_a_row_that_is_too_small_names_what_is_needed():
    with pytest.raises(Complaint) as caught:
        plan_lanes(ZmqSettings(), 2, lan=False, ports=PortRange.parse("5655-5662"))
    assert caught.value.exit_code == 2 and "needs 9, and it has 8" in caught.value.cause
    assert "5655-5663" in caught.value.fix


def test_two_lanes_at_one_port_are_refused():
    with pytest.raises(Complaint, match="5557 is taken twice"):
        plan_lanes(ZmqSettings(router_addr="tcp://127.0.0.1:5557"), 0, lan=False, ports=None)


@pytest.mark.parametrize("text", ["", "x", "1-", "-2", "5-4", "0-9", "70000", "1-70000", "1-2-3", "5655:5670", "٣"])
def test_what_is_no_row_of_ports_is_refused(text):
    with pytest.raises(Complaint) as caught:
        PortRange.parse(text)
    assert caught.value.exit_code == 2


def test_a_row_ends_where_ports_end():
    assert PortRange(65531).take(5, "it")[-1] == 65535
    with pytest.raises(Complaint):
        PortRange(65532).take(5, "it")


@pytest.mark.parametrize(
    "text", ["udp://h:1", "http://h:1", "tcp://h", "tcp://:1", "tcp://h:", "tcp://h:x", "tcp://h:1/x"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(Complaint) as caught:
        HostPort.parse("--coordinator", text)
    assert caught.value.exit_code == 2 and text in caught.value.what


def test_a_port_beyond_all_ports_is_refused():
    assert str(HostPort.parse("it", "h:65535")) == "tcp://h:65535"
    for text, least in (("tcp://h:65536", 0), ("tcp://h:0", 1)):
        with pytest.raises(Complaint, match="is no address"):
            HostPort.parse("it", text, port_min=least)
