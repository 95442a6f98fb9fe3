"""A random Llama directory of a chosen size, written without torch: what the benchmarks serve.

Weights are uniform with the usual scale; nobody reads the answers. The tokenizer is the demo model's.
"""

import json
from pathlib import Path

import attrs
import numpy as np

from hydra.store.models.demo_model import ensure_demo_model

SHARD_LAYERS = 8


@attrs.frozen(kw_only=True)
class LlamaShape:
    """Sizes of a Llama. Bytes are of float32."""

    layers: int
    hidden: int = 1024
    intermediate: int = 2816
    heads: int = 16
    kv_heads: int = 4
    vocab: int = 4096

    @property
    def layer_bytes(self) -> int:
        head = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * head
        return 4 * (attention + 3 * self.hidden * self.intermediate + 2 * self.hidden)

    @property
    def head_bytes(self) -> int:
        return 4 * self.vocab * self.hidden

    @property
    def kv_token_bytes(self) -> int:
        """Of all layers together."""
        return 2 * 4 * self.layers * self.kv_heads * (self.hidden // self.heads)


def write_llama(directory: Path, shape: LlamaShape, *, bfloat16: bool = False) -> Path:
    """The directory, made now; weights in float32, or in bfloat16."""
    directory.mkdir(parents=True)
    demo = ensure_demo_model(directory.parent / "words")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (directory / name).write_bytes((demo / name).read_bytes())
    config = json.loads((demo / "config.json").read_text())
    config |= {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
    }
    (directory / "config.json").write_text(json.dumps(config))
    _write_weights(directory, shape, bfloat16)
    return directory


def _write_weights(directory: Path, shape: LlamaShape, bfloat16: bool) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(7)

    def matrix(rows: int, columns: int) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
        return (rng.random((rows, columns), np.float32) - np.float32(0.5)) * np.float32(2.0 / columns**0.5)

    files: dict[str, str] = {}

    def save(name: str, tensors: "dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]") -> None:
        if bfloat16:
            _save_bfloat16(tensors, directory / name)
        else:
            save_file(tensors, directory / name)
        files.update(dict.fromkeys(tensors, name))

    keys = shape.kv_heads * shape.hidden // shape.heads
    ones = np.ones(shape.hidden, np.float32)
    for first in range(0, shape.layers, SHARD_LAYERS):
        tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
        for layer in range(first, min(first + SHARD_LAYERS, shape.layers)):
            prefix = f"model.layers.{layer}."
            tensors |= {
                prefix + "input_layernorm.weight": ones,
                prefix + "post_attention_layernorm.weight": ones,
                prefix + "self_attn.q_proj.weight": matrix(shape.hidden, shape.hidden),
                prefix + "self_attn.k_proj.weight": matrix(keys, shape.hidden),
                prefix + "self_attn.v_proj.weight": matrix(keys, shape.hidden),
                prefix + "self_attn.o_proj.weight": matrix(shape.hidden, shape.hidden),
                prefix + "mlp.gate_proj.weight": matrix(shape.intermediate, shape.hidden),
                prefix + "mlp.up_proj.weight": matrix(shape.intermediate, shape.hidden),
                prefix + "mlp.down_proj.weight": matrix(shape.hidden, shape.intermediate),
            }
        save(f"layers-{first:03d}.safetensors", tensors)
    save(
        "ends.safetensors",
        {
            "model.embed_tokens.weight": matrix(shape.vocab, shape.hidden),
            "model.norm.weight": ones,
            "lm_head.weight": matrix(shape.vocab, shape.hidden),
        },
    )
    index = {"metadata": {}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _save_bfloat16(tensors: "dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]", path: Path) -> None:
    """A safetensors file of the upper halves; numpy has no such dtype, so the library will not write it from there."""
    entries, at = {}, 0
    for name, tensor in tensors.items():
        end = at + tensor.size * 2
        entries[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": (at, end)}
        at = end
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors.values():
            file.write((tensor.view(np.uint32) >> 16).astype(np.uint16).tobytes())
