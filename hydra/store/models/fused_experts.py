"""The matrices of all experts of a layer in one published tensor: for each expert the bytes that are its own.

A file stores the first side of a tensor outermost, so that each expert's share is one range. Promises: ranges that
cover the tensor, in the order of the experts; a tensor of another shape than the model asks for is refused by name.
Refuses to know which model has such tensors.
"""

from collections.abc import Iterator

import attrs

from hydra.protocol.model.encoding import PLAIN_ENCODINGS, Encoding, TensorShape
from hydra.protocol.model.model_spec import Converted, TensorRange
from hydra.protocol.refusal import RefusalError, refuse
from hydra.store.formats.safetensors_header import StoredTensor
from hydra.store.models.names import Expected


@attrs.frozen
class _Share:
    """What one expert has of a tensor: its encoding, the shape that a range of it has, and what is to be undone."""

    encoding: Encoding
    shape: TensorShape
    converted: Converted = ""


def expert_ranges(expected: Expected, file: str, stored: StoredTensor) -> Iterator[TensorRange]:
    """One range for each expert. Raises RefusalError: bad_model, unsupported."""
    n_experts = expected.shape[0]
    share = _share(expected, file, stored)
    length = stored.length // n_experts
    for expert in range(n_experts):
        yield TensorRange(
            name=expected.name,
            file=file,
            offset=stored.offset + expert * length,
            length=length,
            encoding=share.encoding,
            shape=share.shape,
            place=attrs.evolve(expected.place, expert=expert, converted=share.converted),
        )


def _share(expected: Expected, file: str, stored: StoredTensor) -> _Share:
    n_experts, rows, columns = expected.shape
    match expected.form:
        case "either" if stored.shape == expected.shape:
            _check(expected, file, stored, expected.shape, tuple(PLAIN_ENCODINGS))
            return _Share(PLAIN_ENCODINGS[stored.file_dtype], (rows, columns))
        case _:
            _check(expected, file, stored, (n_experts, columns, rows), tuple(PLAIN_ENCODINGS))
            return _Share(PLAIN_ENCODINGS[stored.file_dtype], (rows, columns), "transposed")


def _check(
    expected: Expected, file: str, stored: StoredTensor, shape: TensorShape, file_dtypes: tuple[str, ...]
) -> None:
    if stored.shape != shape:
        raise wrong_shape(expected.name, file, stored, shape)
    if stored.file_dtype not in file_dtypes:
        raise wrong_dtype(expected.name, file, stored, file_dtypes)


def wrong_shape(name: str, file: str, stored: StoredTensor, shape: TensorShape) -> RefusalError:
    return refuse("bad_model", f"{name!r} in {file} has shape {stored.shape}; config.json asks for {shape}.")


def wrong_dtype(name: str, file: str, stored: StoredTensor, known: tuple[str, ...]) -> RefusalError:
    return refuse(
        "unsupported", f"{name!r} in {file} is stored as {stored.file_dtype}; supported are {', '.join(known)}."
    )
