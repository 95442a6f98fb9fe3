"""Between bytes, columns and tensors: names of dtypes, blobs without a copy, columns onto a device."""

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydra.protocol.blob import Blob, BlobDtype

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int32": torch.int32,
}
_NAMES: dict[torch.dtype, BlobDtype] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int32: "int32",
}

# torch warns once per process that a read-only buffer could be written through a tensor. Nothing here writes into a
# received blob; the one warning is spent on an empty promise, so that filters (which are not thread-safe) stay alone.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


def tensor_of(blob: Blob) -> Tensor:
    """The blob's own memory as a CPU tensor. Never write into it: it may belong to a received message."""
    dtype = TORCH_DTYPES[blob.dtype]
    if memoryview(blob.data).nbytes == 0:
        return torch.empty(blob.shape, dtype=dtype)
    return torch.frombuffer(blob.data, dtype=dtype).view(blob.shape)


def blob_of(tensor: Tensor) -> Blob:
    """The tensor's own memory as a blob (copied only from another device, or when it is not contiguous)."""
    host = tensor.contiguous().cpu()
    shape = tuple(host.shape)
    if host.numel() == 0:
        return Blob(_NAMES[host.dtype], shape, b"")
    return Blob(_NAMES[host.dtype], shape, bytes_of(host))


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's memory, byte by byte and writable."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def to_device(column: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """A column of the host on a device. The host never waits for the copy; a received (read-only) one is cloned."""
    tensor = torch.from_numpy(np.require(column, requirements=("C", "W")))
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
