"""Looks on while a planner works: is a plan that broke made again, as it was, although nobody tried its ways since?

It stands in the planner's place in its host, passes everything on, and changes nothing.
"""

from typing import Any

import attrs

from hydra.actors.core.facts import NodeLost, StepVanished
from hydra.actors.core.machine import Effect, Event, Machine, Received, Send
from hydra.protocol.ids import Epoch, RouteId
from hydra.protocol.messages.plans import LoadSlice, RouteBroken

Plan = tuple[tuple[Any, int, int], ...]  # (where, first layer, end layer) of every stage
DIAL_EVENTS = ("Dialled", "DialledOut")  # events that say what came of dialling


@attrs.define(eq=False)
class PlanWatch:
    """`repeated` has the plans that came a second time without a cause removed."""

    planner: Machine
    repeated: list[str] = attrs.field(factory=list, init=False)
    tried: bool = attrs.field(default=False, init=False)  # anything, ever
    _plans: dict[RouteId, tuple[Epoch, Plan]] = attrs.field(factory=dict, init=False)
    _broken: dict[RouteId, str] = attrs.field(factory=dict, init=False)  # since the last plan, and nothing tried since

    def handle(self, event: Event, now_s: float) -> list[Effect]:
        self._see(event)
        effects = self.planner.handle(event, now_s)
        self._see_plan(effects, now_s)
        return effects

    def check(self) -> None:
        """The planner's own, if it has one."""
        check = getattr(self.planner, "check", None)
        if check is not None:
            check()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.planner, name)

    def _see(self, event: Event) -> None:
        word = event.message if isinstance(event, Received) else event
        match word:
            case RouteBroken(route=route, epoch=epoch, why=why) | StepVanished(route=route, epoch=epoch, why=why):
                if route in self._plans and self._plans[route][0] == epoch:
                    self._broken[route] = why
            case NodeLost():
                self._broken.clear()  # whoever comes back is another life, and greeted anew
            case _ if type(word).__name__ in DIAL_EVENTS:
                self.tried = True
                self._broken.clear()

    def _see_plan(self, effects: list[Effect], now_s: float) -> None:
        stages: dict[RouteId, list[tuple[Any, int, int]]] = {}
        epochs: dict[RouteId, Epoch] = {}
        for effect in effects:
            if isinstance(effect, Send) and isinstance(order := effect.message, LoadSlice):
                stages.setdefault(order.route, []).append((effect.to, order.first_layer, order.end_layer))
                epochs[order.route] = order.epoch
        for route, plan in stages.items():
            former = self._plans.get(route)
            why = self._broken.pop(route, None)
            if why is not None and former is not None and former[1] == tuple(plan):
                self.repeated.append(f"{now_s:.2f} s: {tuple(plan)} again, which broke because: {why}")
            self._plans[route] = (epochs[route], tuple(plan))
