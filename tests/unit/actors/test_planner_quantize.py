"""A model that is to be quantised while it is loaded: planned by what it keeps, and ordered as such."""

import attrs
import pytest

from hydra.actors.planning.desired_model import DesiredModel, Recover, WasDescribed
from hydra.protocol.messages.membership import Held
from hydra.protocol.messages.models import LoadModel, ModelReply
from hydra.protocol.model.encoding import F32, encoding_of
from hydra.protocol.model.model_spec import Place, TensorRange
from tests.unit.actors.test_planner import ASKER, MODEL, SPEC, Hall, answers, joined, layers, orders

ROWS, COLUMNS = 50_000, 2_000


def stored(place, shape, encoding=F32):
    n_bytes = encoding.n_bytes(shape)
    return TensorRange(name=place.role, file="m", offset=0, length=n_bytes, encoding=encoding, shape=shape, place=place)


TENSORS = (
    *(stored(Place(role="gate_up", layer=layer), (ROWS, COLUMNS)) for layer in range(SPEC.n_layers)),
    stored(Place(role="embedding"), (SPEC.vocab, SPEC.hidden)),
    stored(Place(role="head"), (SPEC.vocab, SPEC.hidden)),
    stored(Place(role="final_norm"), (SPEC.hidden,)),
)
FULL = attrs.evolve(MODEL, tensors=TENSORS)


def hall_of(*nodes, gigabytes, quantize="int4"):
    hall = Hall()
    desired = DesiredModel("/models/m", "m", quantize=quantize)
    hall.tell(Recover(desired=(desired,), expected=len(nodes), nodes=(), patience_s=6.0))
    for node in nodes:
        hall.tell(node if not isinstance(node, str) else joined(node, gigabytes=gigabytes))
    return hall


def test_it_fits_where_the_full_model_does_not():
    """Twelve layers of 0.4 GB are 4.8 GB, and 0.7 of them in 4 bits."""
    assert not orders(hall_of("a", gigabytes=3, quantize="none").tell(WasDescribed("/models/m", FULL)))
    effects = hall_of("a", gigabytes=3).tell(WasDescribed("/models/m", FULL))
    assert layers(effects) == {"a-1": (0, 12)}
    (order,) = orders(effects).values()
    assert order.spec.quantize == "int4" and order.spec.fingerprint == SPEC.fingerprint
    assert order.spec.layer_sizes[0].memory_bytes("float32") == ROWS * (COLUMNS // 2 + 2 * 63)
    assert order.spec.layer_sizes[0].stored_bytes == 4 * ROWS * COLUMNS


@pytest.mark.parametrize(("held", "counts"), [("int4", True), ("none", False), ("int8", False)])
def test_only_layers_held_in_that_form_are_held(held, counts):
    """Those of `b` are in its memory: they stay where they are, if they are what is wanted."""
    before = (Held(fingerprint=SPEC.fingerprint, dtype="float32", layers=tuple(range(6)), quantize=held),)
    hall = hall_of(joined("a", gigabytes=3), joined("b", gigabytes=3, held=before), gigabytes=3)
    placed = layers(hall.tell(WasDescribed("/models/m", FULL)))
    assert (placed["b-1"] == (0, 6)) is counts


def test_a_part_without_a_tensor_keeps_its_size():
    effects = hall_of("a", gigabytes=8).tell(WasDescribed("/models/m", MODEL))
    (order,) = orders(effects).values()
    assert order.spec == attrs.evolve(SPEC, quantize="int4")


def test_a_model_of_another_encoding_is_refused():
    hall = Hall()
    hall.begin(expected=1)
    hall.tell(joined("a"))
    hall.hears(LoadModel(ask=5, model_path="/models/x", model_id="x", quantize="int8"), ASKER)
    first, *others = TENSORS
    packed = attrs.evolve(first, encoding=encoding_of("packed:4:1x32"))
    effects = hall.tell(WasDescribed("/models/x", attrs.evolve(MODEL, tensors=(packed, *others))))
    (reply,) = answers(effects)
    assert isinstance(reply, ModelReply) and reply.refusal is not None
    assert (reply.refusal.code, reply.refusal.param) == ("unsupported", "quantize")
