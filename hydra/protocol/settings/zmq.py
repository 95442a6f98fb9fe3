"""Section [zmq]: where the lanes of the cluster are, and how much may wait on one."""

import attrs


@attrs.frozen(kw_only=True)
class ZmqSettings:
    router_addr: str = "tcp://127.0.0.1:5555"
    metrics_addr: str = "tcp://127.0.0.1:5556"
    broadcast_addr: str = "tcp://127.0.0.1:5557"
    results_addr: str = "tcp://127.0.0.1:0"
    store_addr: str = "tcp://127.0.0.1:0"
    high_water_mark: int = 1000
