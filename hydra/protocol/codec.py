"""The command lane's wire form: one msgpack frame [number, to, sender, class name, fields] per message.

Strict in one direction: exact scalar types within their limits (see `limits`), no unknown key, closed unions, bounded
sizes; whatever is wrong with bytes from outside becomes one TheyBrokeTheRules. What a reader would refuse is not said
either. The messages do not know this file, and this file knows no socket. Columns travel as little-endian bytes and are
decoded without a copy (read-only).
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast, get_args, get_origin

import attrs
import cattrs
import msgpack  # type: ignore[import-untyped]
import numpy as np
from cattrs.strategies import configure_tagged_union

from hydra.protocol.batch import LOGPROBS_COLUMNS, Logprobs
from hydra.protocol.blob import Buffer, Frames
from hydra.protocol.columns import INT32, column_of, lowest
from hydra.protocol.faults import MessageTooBig, TheyBrokeTheRules
from hydra.protocol.ids import ActorName
from hydra.protocol.limits import ALTERNATIVES_MAX, FIELDS, IDS, INT63_MAX, NAME_MAX, PLAIN_LIMITS, Limit, Range
from hydra.protocol.messages import Message
from hydra.protocol.messages.generations import Tokens
from hydra.protocol.messages.membership import Beacon, Heartbeat, HeartbeatSeen
from hydra.protocol.messages.plans import LoadSlice
from hydra.protocol.model.encoding import Encoding, encoding_of
from hydra.protocol.model.layer_spec import FeedForwardSpec
from hydra.protocol.model.model_spec import Place, TensorRange
from hydra.protocol.model.part_size import PartSize
from hydra.protocol.model.source import Source
from hydra.protocol.range_list import fold, unfold
from hydra.protocol.rules import RULES, no_rule

CONTROL_BYTES_MAX = 4 << 20
STRING_BYTES_MAX = 1 << 20
ARRAY_ITEMS_MAX = 1 << 17
MAP_ITEMS_MAX = 256
ACTOR_NAME_LENGTH_MAX = 64  # of an actor

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]


@attrs.frozen
class Envelope:
    """A message, the actor it is for and the actor that says it; both inside the peers the connection names.

    `number` counts what one process says to another, from 1; 0 is outside the count (broadcasts).
    """

    to: ActorName
    sender: ActorName
    message: Message
    number: int = 0


# ---------------------------------------------------------------- values


def _exactly(kind: type, limit: Limit | None = None) -> Hook:
    """cattrs would turn "3" into 3 and 2.9 into 2. Between machines a near miss is a miss."""

    def check(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
        if limit is not None and not limit.allows(value):
            raise ValueError(f"{value!r:.40} is outside the limits of its field")
        return value

    if not isinstance(limit, Range):
        return check
    low, high = limit.low, limit.high

    def check_range(value: Any, _: Any) -> Any:
        """The same without a call, for what comes by the hundred thousand."""
        return value if low <= value <= high and type(value) is kind else check(value, _)

    return check_range


def _limited(as_kind: Any, limit: Limit) -> Hook:
    """The hook of a field that has a limit of its own, in place of the one of its type."""
    args = get_args(as_kind)
    optional = type(None) in args
    number = next((kind for kind in (int, float) if as_kind is kind or (optional and kind in args)), None)
    hook = _exactly(number) if number is not None else converter.get_structure_hook(as_kind)

    def check(value: Any, _: Any) -> Any:
        if value is None and optional:
            return None
        result = hook(value, as_kind)
        if not limit.allows(result):
            raise ValueError(f"{value!r:.40} is outside the limits of its field")
        return result

    return check


def _tuple_hook(kind: Any) -> Hook:
    """Lists become tuples; a string, bytes or a map is no list."""
    args = get_args(kind)
    if len(args) == 2 and args[1] is Ellipsis:
        item, item_hook = args[0], converter.get_structure_hook(args[0])

        def many(value: Any, _: Any) -> tuple[Any, ...]:
            if type(value) is not list:
                raise TypeError(f"expected a list, got {type(value).__name__}")
            return tuple([item_hook(entry, item) for entry in value])

        return many
    hooks = [(arg, converter.get_structure_hook(arg)) for arg in args]

    def each(value: Any, _: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(hooks):
            raise TypeError(f"expected a list of {len(hooks)}")
        return tuple([hook(entry, arg) for entry, (arg, hook) in zip(value, hooks, strict=True)])

    return each


def _read_column(data: Any, _: Any) -> Any:
    """No column of a message ever holds a negative number."""
    column = column_of(data, INT32)
    if lowest(column) < 0:
        raise ValueError("a negative number in a column")
    return column


def _pack_column(column: np.ndarray[Any, Any]) -> bytes:
    if column.dtype != INT32:
        raise TypeError(f"expected a column of int32, got {column.dtype}")
    return column.tobytes()


def _pack_logprobs(logprobs: Logprobs) -> list[Any]:
    width = logprobs.top.shape[1] if logprobs.top.ndim == 2 else 0
    return [width, *LOGPROBS_COLUMNS.apart(logprobs)]


def _unpack_logprobs(value: Any, _: Any) -> Logprobs:
    width, *columns = value
    if type(width) is not int or type(value) is not list or not 0 <= width <= ALTERNATIVES_MAX:
        raise TypeError("logprobs are a list that begins with a width")
    return Logprobs(*LOGPROBS_COLUMNS.gather(columns, width))


# ---------------------------------------------------------------- classes

UNIONS: tuple[Any, ...] = (FeedForwardSpec, Source)  # told apart on the wire by the name of the class, under "kind"
ROWS: tuple[type, ...] = (TensorRange, Place, PartSize)  # a mixture of experts has tens of thousands in one message


def _ruled_hook(kind: type) -> Hook:
    """The plain hook of a class with the limits of its fields, and its rule after it."""
    types = {field.name: field.type for field in attrs.fields(attrs.resolve_types(kind))}
    limited: dict[str, Any] = {
        name: cattrs.gen.override(struct_hook=_limited(types[name], limit))
        for name, limit in FIELDS.get(kind, {}).items()
    }
    plain: Hook = cattrs.gen.make_dict_structure_fn(
        kind, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=False, **limited
    )
    rule = RULES.get(kind, no_rule)

    def checked(value: Any, as_kind: Any) -> Any:
        result = plain(value, as_kind)
        if not rule(result):
            raise ValueError(f"a {kind.__name__} outside its limits")
        return result

    return checked


def _row_hook(kind: type) -> Hook:
    """Reads what is said by the thousand: a list of the fields in their order, then the rule."""
    fields = attrs.fields(attrs.resolve_types(kind))
    hooks = [(field.name, field.type, converter.get_structure_hook(field.type)) for field in fields]
    rule = RULES.get(kind, no_rule)

    def checked(value: Any, _: Any) -> Any:
        if type(value) is not list or len(value) != len(hooks):
            raise TypeError(f"a {kind.__name__} is a list of {len(hooks)}")
        result = kind(**{name: hook(entry, as_kind) for entry, (name, as_kind, hook) in zip(value, hooks, strict=True)})
        if not rule(result):
            raise ValueError(f"a {kind.__name__} outside its limits")
        return result

    return checked


def _row_unhook(kind: type) -> Callable[[Any], list[Any]]:
    fields = attrs.fields(attrs.resolve_types(kind))
    hooks = [(field.name, converter.get_unstructure_hook(field.type)) for field in fields]
    return lambda value: [hook(getattr(value, name)) for name, hook in hooks]


def _is_ranges(kind: Any) -> bool:
    return bool(kind == tuple[TensorRange, ...])


def _ranges_hook(kind: Any) -> Hook:
    """Unfolded, and then each of them as strictly as if it had come alone."""
    hook = converter.get_structure_hook(TensorRange)
    return lambda value, _: tuple([hook(row, TensorRange) for row in unfold(value)])


def _ranges_unhook(kind: Any) -> Callable[[Any], list[Any]]:
    hook = converter.get_unstructure_hook(TensorRange)
    return lambda ranges: fold([hook(source) for source in ranges])


def _named_encoding(name: Any) -> Encoding:
    if type(name) is not str or len(name) > NAME_MAX:
        raise TypeError("an encoding is said by its name")
    return encoding_of(name)


# ---------------------------------------------------------------- the converter


def _is_column(kind: Any) -> bool:
    return get_origin(kind) is np.ndarray


def _is_tuple(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is tuple


def _id_hook(kind: Any) -> Hook:
    return _exactly(*IDS[kind])


def _make_converter() -> cattrs.Converter:
    result = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)
    for kind in (int, str, float, bool, bytes):
        result.register_structure_hook(kind, _exactly(kind, PLAIN_LIMITS.get(kind)))
    result.register_unstructure_hook(float, float)  # an int in a float's place is said as a float
    result.register_structure_hook_factory(lambda kind: kind in IDS, _id_hook)
    result.register_structure_hook_factory(_is_tuple, _tuple_hook)
    result.register_structure_hook_factory(_is_ranges, _ranges_hook)
    result.register_unstructure_hook_factory(_is_ranges, _ranges_unhook)
    result.register_structure_hook_factory(lambda kind: kind in RULES or kind in FIELDS, _ruled_hook)
    result.register_structure_hook_factory(lambda kind: kind in ROWS, _row_hook)
    result.register_unstructure_hook_factory(lambda kind: kind in ROWS, _row_unhook)
    result.register_structure_hook_func(_is_column, _read_column)
    result.register_unstructure_hook_func(_is_column, _pack_column)
    result.register_structure_hook_func(lambda kind: kind == Encoding, lambda name, _: _named_encoding(name))
    result.register_unstructure_hook_func(lambda kind: kind == Encoding, lambda encoding: encoding.name)
    result.register_structure_hook(Logprobs, _unpack_logprobs)
    result.register_unstructure_hook(Logprobs, _pack_logprobs)
    return result


converter = _make_converter()
for union in UNIONS:
    configure_tagged_union(union, converter, tag_name="kind")
_KINDS: tuple[type, ...] = get_args(Message)
_WRITE = {kind: (kind.__name__, converter.get_unstructure_hook(kind)) for kind in _KINDS}
_READ = {kind.__name__: (kind, converter.get_structure_hook(kind)) for kind in _KINDS}
# Said many times a second, or by the megabyte, and made of numbers that were within limits before. All else is read as
# its receiver will before it is said: what he refused would count as lost, and end our membership.
_AS_IT_IS = frozenset({Tokens, Heartbeat, HeartbeatSeen, Beacon, LoadSlice})


def _plain_number(value: object) -> object:
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, int):
        raise OverflowError(f"{value:.3g} has more than 64 bits")
    raise TypeError(f"no message carries a {type(value).__name__}")


def pack(value: object) -> bytes:
    """msgpack of plain values. Unpaired surrogates become "?": a client's odd string is no reason to fall over."""
    return cast(bytes, msgpack.packb(value, default=_plain_number, unicode_errors="replace"))


def unpack(frame: Buffer) -> Any:
    """Plain values of a bounded frame. Raises whatever msgpack raises: callers wrap it."""
    return msgpack.unpackb(
        frame,
        max_str_len=STRING_BYTES_MAX,
        max_array_len=ARRAY_ITEMS_MAX,
        max_map_len=MAP_ITEMS_MAX,
        max_bin_len=CONTROL_BYTES_MAX,
        max_ext_len=0,
    )


def encode(to: ActorName, sender: ActorName, message: Message, number: int = 0) -> list[bytes]:
    """A message as frames that `decode` takes. Raises MessageTooBig; a TypeError here is a bug of ours."""
    kind = type(message)
    name, write = _WRITE[kind]
    try:
        frame = pack((number, to, sender, name, write(message)))
        if kind not in _AS_IT_IS:
            _READ[name][1](unpack(frame)[4], kind)
    except TypeError:
        raise
    except Exception as error:
        raise MessageTooBig(f"a {name} beyond the limits of its fields: {error!r:.200}") from error
    if len(frame) > CONTROL_BYTES_MAX:
        raise MessageTooBig(f"a {name} of {len(frame)} bytes; the command lane carries {CONTROL_BYTES_MAX}")
    if len(frame) > ARRAY_ITEMS_MAX:  # in a shorter one no list and no string can be too long
        try:
            unpack(frame)
        except ValueError as error:
            raise MessageTooBig(f"a {name} with a list or a string that is too long ({error!s:.100})") from None
    return [frame]


def decode(frames: Frames) -> Envelope:
    """Frames as a message. Raises TheyBrokeTheRules and nothing else."""
    try:
        (frame,) = frames
        if len(frame) > CONTROL_BYTES_MAX:
            raise ValueError(f"{len(frame)} bytes are too many")
        number, to, sender, name, fields = unpack(frame)
        if type(number) is not int or not 0 <= number <= INT63_MAX:
            raise TypeError("messages are counted by a number")
        for actor in (to, sender):
            if type(actor) is not str or not 0 < len(actor) <= ACTOR_NAME_LENGTH_MAX:
                raise TypeError("an actor is named by a short string")
        kind, read = _READ[name]
        if type(fields) is not dict:
            raise TypeError("fields are a map")
        return Envelope(to, sender, read(fields, kind), number)
    except Exception as error:
        raise TheyBrokeTheRules(f"no sentence of the command lane: {error!r:.200}") from error
