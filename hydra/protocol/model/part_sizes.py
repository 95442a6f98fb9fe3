"""What each part of a model comes to, counted from its tensors. Knows no file."""

from collections.abc import Iterable, Mapping

from hydra.protocol.model.layout import Part, part_of, place_of
from hydra.protocol.model.model_spec import TensorRange
from hydra.protocol.model.part_size import PartSize, side_size, tensor_size, total_size


def part_sizes(tensors: Iterable[TensorRange]) -> Mapping[Part, PartSize]:
    """Of every part that has a tensor. Raises ValueError for a shape that its encoding cannot store, KeyError for a
    tensor that goes nowhere.
    """
    per_part: dict[Part, list[PartSize]] = {}
    for tensor in tensors:
        size = tensor_size if place_of(tensor).side == "values" else side_size
        per_part.setdefault(part_of(tensor), []).append(size(tensor.encoding, tensor.shape))
    return {part: total_size(sizes) for part, sizes in per_part.items()}
