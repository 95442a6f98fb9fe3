"""The world outside the actors, as interfaces: whoever starts the actors hands in something that keeps them.

`Compute` is satisfied by the kernel room (torch) and by the simulator's pocket model; `Library`, `Supply` and `Lender`
by the store room and by a simulated lender. No file here knows which.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

from hydra.protocol.batch import Outcome, Run
from hydra.protocol.ids import RouteId
from hydra.protocol.lent import Lent
from hydra.protocol.messages.membership import DeviceOffer, Held
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.load_report import SliceFacts
from hydra.protocol.model.model_spec import Described, TensorRange
from hydra.protocol.progress import Progress

RunBlocking: TypeAlias = Callable[..., Awaitable[Any]]
"""Runs a blocking function off the event loop: in a thread, or in virtual time."""


Ticket: TypeAlias = Any  # a launched run, still under way on a device with queues of its own


class Compute(Protocol):
    """One device's worth of layers, pools and arithmetic.

    `load`, `activate`, `drop` run on a loader thread; `launch` and `collect` on the stage's own thread(s), in order:
    tickets are collected in the order they were launched. On the CPU `launch` does all the work. A slice is a dict of
    layers, so that `load` of a new range frees and reads only the difference, while another route keeps stepping.
    Raises RefusalError (bad_model, does_not_fit, unsupported) from `load`, and does_not_fit from `activate`; anything
    else is a fault of the process. A step that finds no memory is none: it is collected as an Outcome that says so,
    wherever it failed.
    """

    def offer(self) -> DeviceOffer: ...

    def held(self) -> tuple[Held, ...]: ...

    def still_to_read(self, order: LoadSlice) -> LoadSlice | None:
        """The order with those of its tensors only that are not in memory yet; None: `load` would read no file.
        Asked on the loader thread, right before `load` and whatever brings the bytes for it."""

    def load(self, order: LoadSlice, progress: Progress) -> SliceFacts:
        """Frees the route's pool, then holds exactly the ordered layers. Nothing half-loaded stays after a refusal."""

    def activate(self, route: RouteId, kv_blocks: int) -> None:
        """Makes the KV pool of `kv_blocks` blocks and warms up, so that the first step is no slower than the others.
        After a refusal there is no pool; the weights stay."""

    def drop(self, route: RouteId) -> None:
        """Frees pool and weights of a route; unknown routes are fine."""

    def free_pool(self, route: RouteId) -> None:
        """Frees the KV pool and keeps the weights as inventory."""

    def launch(self, run: Run) -> Ticket: ...

    def collect(self, ticket: Ticket) -> Outcome: ...


class Supply(Protocol):
    """The bytes of an ordered slice, brought to this machine. Called on the loader thread, before Compute.load, and
    only for what is not in memory."""

    def ensure(self, order: LoadSlice, progress: Progress, cancelled: Callable[[], bool]) -> LoadSlice:
        """The same order with one local directory as its only source, in which every range of the order can be read.

        `cancelled` is asked now and then, from threads of the supply; once it says yes, what has come so far is kept
        and the refusal `cancelled` is raised. Raises RefusalError: bad_model, access_denied, source_unreachable,
        does_not_fit, model_not_found, cancelled.
        """

    def confirm(self, at_hand: LoadSlice) -> None:
        """After Compute.load: what was read is what `ensure` answered for. Raises RefusalError bad_model when a file
        was changed meanwhile: then what was read is neither the one nor the other."""


class AlreadyLocal:
    """A supply where nothing has to be brought: the order's first source is a directory of this machine already."""

    def ensure(self, order: LoadSlice, progress: Progress, cancelled: Callable[[], bool]) -> LoadSlice:
        return order

    def confirm(self, at_hand: LoadSlice) -> None:
        """Nobody looked at the files before."""


class Lender(Protocol):
    """What this process may hand to others of described models' files. Any thread may call."""

    def lend_slice(self, order: LoadSlice) -> None:
        """From now on the ranges of this order, which was loaded from the folder that is its one source; of no other
        model any more. Raises OSError when the folder went away."""

    def read(self, fingerprint: str, file: str, offset: int, length: int) -> Lent:
        """Exactly `length` bytes. Raises RefusalError: model_not_found, invalid_value, bad_model."""


class Library(Protocol):
    """Models, described: directories, and Hub ids. Called in a thread of its own."""

    def describe(self, model_path: str) -> Described:
        """Raises RefusalError: model_not_found, bad_model, unsupported, access_denied, source_unreachable."""

    def slice_ranges(self, described: Described, first_layer: int, end_layer: int) -> tuple[TensorRange, ...]:
        """The tensors of one slice: embedding with layer 0, norm and head with the last, tied or not."""
