"""What can befall a simulated cluster, and what mends it. Knows no reader."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import attrs

from hydra.simulation.node import Node
from hydra.simulation.scene import Scene


@attrs.define(eq=False)
class Faults(Scene):
    """Operations for stories: each says in the story what it does, and most end by themselves after `for_s`."""

    def pause(self, name: str, for_s: float | None = None) -> None:
        """SIGSTOP: nothing leaves it, nothing reaches it, nothing in it moves on."""
        node = self.nodes[name]
        if not node.alive or node.paused:
            return
        self.say(f"{name} is stopped")
        node.paused = True
        self.network.pause(name)
        if for_s is not None:
            self.nursery.start_soon(self.later, for_s, partial(self._resume, node))

    def resume(self, name: str) -> None:
        self._resume(self.nodes[name])

    def hang(self, name: str) -> None:
        """Its arithmetic never returns; everything else in it goes on."""
        self.say(f"{name} hangs")
        self.nodes[name].hung = True
        self.nodes[name].change()

    def cut(self, one: str, other: str, for_s: float | None = None) -> None:
        self.say(f"the link between {one} and {other} is cut")
        self.network.cut(one, other)
        if for_s is not None:
            self.nursery.start_soon(self.later, for_s, partial(self.heal, one, other))

    def heal(self, one: str, other: str) -> None:
        """Works again. The sockets noticed meanwhile, so the connections are new ones."""
        self.say(f"the link between {one} and {other} is healed")
        self.network.snap(one, other)
        self.network.heal(one, other)

    def deafen(self, one: str, other: str, for_s: float) -> None:
        """A partition in one direction: what `one` says does not reach `other`."""
        self.say(f"nothing that {one} says reaches {other}")
        self.network.cut(one, other, both=False)
        self.nursery.start_soon(self.later, for_s, partial(self.heal, one, other))

    def sever(self, one: str, other: str, for_s: float = math.inf) -> None:
        """The data lane from `one` to `other` is dead. Everything else between them works."""
        self.say(f"no step gets from {one} to {other}")
        self.network.severed.hops.add((one, other))
        self._for(for_s, ("hop", f"{one} {other}"), partial(self.restore, one, other))

    def restore(self, one: str, other: str) -> None:
        self.say(f"steps get from {one} to {other}")
        self.network.severed.restore(self.network, (one, other))

    def fail_loads(self, name: str, how: Literal["refused", "hangs"], for_s: float = math.inf) -> None:
        """Whatever this worker is told to load it refuses, or never brings to an end."""
        self.say(f"loads of {name} fail: {how}")
        self.may_fail = True
        self.nodes[name].load_fault = how
        self._for(for_s, ("loads", name), partial(self.mend_loads, name))

    def mend_loads(self, name: str) -> None:
        """Of this life or a later one; whoever hangs there goes on."""
        self.say(f"{name} loads again")
        self.nodes[name].load_fault = ""
        self.nodes[name].change()

    def fail_saves(self, for_s: float = math.inf, *, forget: bool = False) -> None:
        """What the coordinator saves is not kept. `forget`: what was kept is gone too."""
        self.say("nothing is saved any more" + (", and nothing is left" if forget else ""))
        self.saves_fail = True
        if forget:
            self.saved = self.first_saved
        self._for(for_s, ("state", ""), self.mend_saves)

    def mend_saves(self) -> None:
        self.say("what is saved is kept again")
        self.saves_fail = False

    def calm_down(self) -> None:
        """The end of all faults but those for good: every link works, everybody runs."""
        self.say("calm")
        for one, other in sorted(self.network.severed.hops):
            if ("hop", f"{one} {other}") not in self.lasting:
                self.restore(one, other)
        if self.saves_fail and ("state", "") not in self.lasting:
            self.mend_saves()
        for link in self.network._links.values():
            link.cut, link.drop, link.duplicate = False, 0.0, 0.0
        self.network.default.duplicate = 0.0
        names = sorted(self.nodes)
        for one in names:
            for other in names:
                if one < other and any(self.network.link(*pair).cut for pair in ((one, other), (other, one))):
                    self.heal(one, other)
        self.network.dial_all()
        for name in names:
            node = self.nodes[name]
            if node.paused:
                self._resume(node)
            if node.load_fault and ("loads", name) not in self.lasting:
                self.mend_loads(name)
            if not node.alive:
                self.start(name)

    def _for(self, for_s: float, lasting: tuple[str, str], mend: Callable[[], None]) -> None:
        if math.isinf(for_s):
            self.lasting.add(lasting)
        else:
            self.nursery.start_soon(self.later, for_s, mend)

    def _resume(self, node: Node) -> None:
        if node.paused and node.alive:
            self.say(f"{node.name} goes on")
            node.paused = False
            node.change()
            self.network.resume(node.name)
