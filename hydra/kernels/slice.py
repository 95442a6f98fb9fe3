"""One worker's share of a model: embedding? + some layers + norm and head?, loaded and run.

A slice is a dict of layers, so that another plan loads and frees only the difference.
"""

import re
from collections.abc import Callable
from pathlib import Path

import attrs
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor

from hydra.kernels.decoder import DecoderLayer
from hydra.kernels.kv_pool import KvPool, RowSpan
from hydra.kernels.layers import rms_norm, rotary_table
from hydra.kernels.weights import TORCH_DTYPES, WeightReader
from hydra.protocol.messages import LoadSlice
from hydra.protocol.model_spec import ModelSpec, TensorRange

_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")


@attrs.define(eq=False)
class Slice:
    """What is in memory of one model, in one dtype, on one device."""

    spec: ModelSpec
    dtype: str
    device: torch.device
    layers: dict[int, DecoderLayer] = attrs.field(factory=dict)
    embedding: Tensor | None = None  # [V, D]; with tied weights also the head
    norm: Tensor | None = None
    head: Tensor | None = None
    _rotary: tuple[Tensor, Tensor] | None = None

    # ------------------------------------------------------------ loading

    def load(self, order: LoadSlice, progress: Callable[[int, int], None]) -> int:
        """Frees what the order does not name, then reads what is missing. Returns the bytes read."""
        for layer in [n for n in self.layers if not order.first_layer <= n < order.end_layer]:
            del self.layers[layer]
        wanted = {tensor.name for tensor in order.tensors}
        if "model.embed_tokens.weight" not in wanted:
            self.embedding = None
        if "model.norm.weight" not in wanted:
            self.norm = self.head = None
        fresh = {
            layer: self._empty_layer()
            for layer in range(order.first_layer, order.end_layer)
            if layer not in self.layers
        }
        ends: dict[str, Tensor] = {}
        jobs: list[tuple[TensorRange, Tensor]] = []
        for tensor in order.tensors:
            target = self._target(tensor, fresh, ends)
            if target is not None:
                jobs.append((tensor, target))
        total = sum(tensor.length for tensor, _ in jobs)
        reader = WeightReader(Path(order.sources[0]), progress, total)
        reader.read_all(jobs)
        self.layers.update(fresh)
        self.embedding = ends.get("model.embed_tokens.weight", self.embedding)
        self.norm = ends.get("model.norm.weight", self.norm)
        self.head = ends.get("lm_head.weight", self.head)
        return reader.bytes_read

    def weight_bytes(self) -> int:
        tensors = [self.embedding, self.norm, self.head]
        for layer in self.layers.values():
            tensors += [getattr(layer, field.name) for field in attrs.fields(DecoderLayer)]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=TORCH_DTYPES[self.dtype], device=self.device)

    def _empty_layer(self) -> DecoderLayer:
        spec = self.spec
        d, inner = spec.hidden, spec.intermediate
        q, kv = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        attention, mlp = spec.attention_bias, spec.mlp_bias
        return DecoderLayer(
            input_norm=self._empty(d),
            qkv=self._empty(q + 2 * kv, d),
            out=self._empty(d, q),
            post_norm=self._empty(d),
            gate_up=self._empty(2 * inner, d),
            down=self._empty(d, inner),
            qkv_bias=self._empty(q + 2 * kv) if attention else None,
            out_bias=self._empty(d) if attention else None,
            gate_up_bias=self._empty(2 * inner) if mlp else None,
            down_bias=self._empty(d) if mlp else None,
        )

    def _target(self, tensor: TensorRange, fresh: dict[int, DecoderLayer], ends: dict[str, Tensor]) -> Tensor | None:
        """Where a stored tensor belongs; None when it is here already."""
        named = _LAYER_NAME.fullmatch(tensor.name)
        if named is not None:
            layer = fresh.get(int(named[1]))
            return None if layer is None else self._place_in_layer(layer, named[2])
        held = {
            "model.embed_tokens.weight": self.embedding,
            "model.norm.weight": self.norm,
            "lm_head.weight": self.head,
        }
        assert tensor.name in held, f"a slice has no place for {tensor.name}"
        if held[tensor.name] is not None:
            return None
        ends[tensor.name] = self._empty(*tensor.shape)
        return ends[tensor.name]

    def _place_in_layer(self, layer: DecoderLayer, name: str) -> Tensor:
        spec = self.spec
        q, kv, inner = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim, spec.intermediate
        rows = {"q_proj": (0, q), "k_proj": (q, q + kv), "v_proj": (q + kv, q + 2 * kv)}
        rows |= {"gate_proj": (0, inner), "up_proj": (inner, 2 * inner)}
        whole = {
            "input_layernorm.weight": layer.input_norm,
            "post_attention_layernorm.weight": layer.post_norm,
            "self_attn.o_proj.weight": layer.out,
            "self_attn.o_proj.bias": layer.out_bias,
            "mlp.down_proj.weight": layer.down,
            "mlp.down_proj.bias": layer.down_bias,
        }
        place = whole.get(name)
        if place is None:
            part, projection, kind = name.split(".")
            fused = {
                ("self_attn", "weight"): layer.qkv,
                ("self_attn", "bias"): layer.qkv_bias,
                ("mlp", "weight"): layer.gate_up,
                ("mlp", "bias"): layer.gate_up_bias,
            }[part, kind]
            assert fused is not None, f"a layer of {spec.architecture} has no {name}"
            first, end = rows[projection]
            place = fused[first:end]
        return place

    # ------------------------------------------------------------ running

    def forward(self, x: Tensor, positions: Tensor, pool: KvPool, spans: list[RowSpan]) -> Tensor:
        """[T] token ids (first stage) or [T, D] hidden -> [T, D] hidden."""
        if self.embedding is not None and x.dim() == 1:
            x = F.embedding(x, self.embedding)
        if self._rotary is None:
            self._rotary = rotary_table(self.spec.max_positions, self.spec.head_dim, self.spec.rope_theta, self.device)
        cos, sin = (table[positions][:, None].to(x.dtype) for table in self._rotary)
        for layer in sorted(self.layers):
            x = self.layers[layer].forward(x, self.spec, layer, pool, spans, cos, sin)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """[R, D] of the sampled tokens -> [R, V] float32."""
        head = self.embedding if self.spec.tied else self.head
        assert self.norm is not None and head is not None, "only the last stage has a head"
        return F.linear(rms_norm(x, self.norm, self.spec.norm_eps), head).float()
