"""What is computed of each row beside products, in C: norms, rotations, gates. In one pass over float32 on the CPU,
where torch takes several operators, each of which takes longer to call than a few thousand numbers to compute.

Each constructor returns None where the compiled functions do not serve: in another dtype, on another device, or without
a library. A row's bits are its own, however many others stand beside it. Knows rows of numbers, no layer.
"""

import attrs
import torch
from torch import Tensor

from hydra.kernels.native.library import GateStruct, NativeLibrary, NormStruct, RotationStruct, native_library

GATE_KINDS = {"silu": 0, "gelu_tanh": 1}  # by the name of the activation


def serves(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether there are compiled functions for it."""
    return dtype == torch.float32 and device.type == "cpu" and native_library() is not None


@attrs.frozen(eq=False)
class NativeRmsNorm:
    """Of [..., width]: x / sqrt(mean of its squares + eps) * weight, in a tensor of its own."""

    library: NativeLibrary
    weight: Tensor  # float32 [width], contiguous
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        width = self.weight.shape[0]
        assert x.dtype == torch.float32 and x.shape[-1] == width, x.shape
        x = x.contiguous()
        output = torch.empty_like(x)
        at, to, by = x.data_ptr(), output.data_ptr(), self.weight.data_ptr()
        struct = NormStruct(at, to, by, x.numel() // width, width, width, 1, width, self.eps)
        self.library.rms_norm(struct, torch.get_num_threads())
        return output


def native_rms_norm(weight: Tensor, eps: float) -> NativeRmsNorm | None:
    library = native_library()
    if library is None or not serves(weight.dtype, weight.device):
        return None
    return NativeRmsNorm(library, weight.contiguous(), eps)


@attrs.frozen(eq=False)
class NativeRotation:
    """Of x [n, heads, width], whose heads lie one behind the other, the first channels of each; overwrites it."""

    library: NativeLibrary

    def __call__(self, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        """`cos` and `signed_sin` [n, 1, channels]. Returns x."""
        n, heads, width = x.shape
        assert x.stride(2) == 1 and x.stride(1) == width and cos.is_contiguous() and signed_sin.is_contiguous()
        assert cos.shape[0] == n and x.dtype == cos.dtype == torch.float32
        tables = cos.data_ptr(), signed_sin.data_ptr()
        struct = RotationStruct(x.data_ptr(), *tables, n, x.stride(0), heads, width, cos.shape[-1])
        self.library.rotate(struct, torch.get_num_threads())
        return x


def native_rotation(dtype: torch.dtype, device: torch.device) -> NativeRotation | None:
    library = native_library()
    return NativeRotation(library) if library is not None and serves(dtype, device) else None


@attrs.frozen(eq=False)
class NativeGate:
    """activation(gate) * up of [n, 2 * width], in which both lie side by side: [n, width]."""

    library: NativeLibrary
    kind: int

    def __call__(self, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        n, width = gate_up.shape[0], gate_up.shape[1] // 2
        assert gate_up.dtype == torch.float32
        output = torch.empty(n, width)
        struct = GateStruct(gate_up.data_ptr(), output.data_ptr(), n, width, self.kind)
        self.library.gate(struct, torch.get_num_threads())
        return output


def native_gate(activation: str, dtype: torch.dtype, device: torch.device) -> NativeGate | None:
    library, kind = native_library(), GATE_KINDS.get(activation)
    return NativeGate(library, kind) if library is not None and kind is not None and serves(dtype, device) else None
