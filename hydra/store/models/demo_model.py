"""The built-in demo model: random weights that type printable nonsense, made on first start, the same on all machines.

Promises: a complete directory in the Hugging Face layout or none at all, also when two processes make it at once.
Refuses to know who serves it. Its tokens are bytes: id n < 256 is byte n, five special tokens follow.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEMO_NAME = "hydra-demo-random"
SPECIALS = ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>")
BOS_ID, EOS_ID = 256, 257
DEMO_VOCAB = 256 + len(SPECIALS)
DEMO_HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 64, 176, 8, 4, 2
SEED = 20240229
STD = 0.25  # of every matrix: large enough that the answer depends on what was said, and where
HEAD_STD = 0.7
EOS_SHARE = 0.6  # how loud the end is among the printable bytes: answers end by themselves, but not at once
PRINTABLE = range(0x20, 0x7F)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def ensure_demo_model(cache_dir: Path) -> Path:
    """The demo model's directory under `cache_dir`, made if it is not there yet. Raises OSError if it cannot be."""
    target = cache_dir / DEMO_NAME
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{DEMO_NAME}-", dir=cache_dir))
    try:
        making.chmod(0o755)
        _write(making)
        try:
            making.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster, and made the same
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def _write(directory: Path) -> None:
    documents = {
        "config.json": _config(),
        "generation_config.json": {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID},
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIALS[0],
            "eos_token": SPECIALS[1],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, document in documents.items():
        (directory / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    _write_weights(directory / "model.safetensors", dict(_weights()))


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": DEMO_VOCAB,
        "hidden_size": DEMO_HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": DEMO_HIDDEN // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }


def _weights() -> Iterator[tuple[str, NDArray[np.float32]]]:
    """All tensors in a fixed order. Head rows of unprintable bytes are zero: some random row nearly always wins."""
    bits = np.random.PCG64(SEED)  # its raw bits are the same in every numpy; its distributions need not be

    def matrix(rows: int, columns: int, std: float = STD) -> NDArray[np.float32]:
        unit = (bits.random_raw(rows * columns) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
        return ((unit - np.float32(0.5)) * np.float32(std * math.sqrt(12))).reshape(rows, columns)

    ones = np.ones(DEMO_HIDDEN, dtype=np.float32)
    keys = KV_HEADS * DEMO_HIDDEN // HEADS
    yield "model.embed_tokens.weight", matrix(DEMO_VOCAB, DEMO_HIDDEN, 1.0)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", ones
        yield prefix + "self_attn.q_proj.weight", matrix(DEMO_HIDDEN, DEMO_HIDDEN)
        yield prefix + "self_attn.k_proj.weight", matrix(keys, DEMO_HIDDEN)
        yield prefix + "self_attn.v_proj.weight", matrix(keys, DEMO_HIDDEN)
        yield prefix + "self_attn.o_proj.weight", matrix(DEMO_HIDDEN, DEMO_HIDDEN)
        yield prefix + "post_attention_layernorm.weight", ones
        yield prefix + "mlp.gate_proj.weight", matrix(INTERMEDIATE, DEMO_HIDDEN)
        yield prefix + "mlp.up_proj.weight", matrix(INTERMEDIATE, DEMO_HIDDEN)
        yield prefix + "mlp.down_proj.weight", matrix(DEMO_HIDDEN, INTERMEDIATE)
    yield "model.norm.weight", ones
    spoken = np.zeros((DEMO_VOCAB, 1), dtype=np.float32)
    spoken[PRINTABLE] = 1
    spoken[EOS_ID] = EOS_SHARE
    yield "lm_head.weight", matrix(DEMO_VOCAB, DEMO_HIDDEN, HEAD_STD) * spoken


def _write_weights(path: Path, weights: dict[str, NDArray[np.float32]]) -> None:
    """The safetensors format by hand: the header's length, the header, the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    reached = 0
    for name, array in weights.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [reached, reached + array.nbytes]}
        reached += array.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for array in weights.values():
            file.write(array.astype("<f4").tobytes())
        file.flush()
        os.fsync(file.fileno())


def _tokenizer() -> dict[str, Any]:
    """A byte-level BPE without merges, in the format of the `tokenizers` library."""
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256 + i, "content": special, **added} for i, special in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {char: byte for byte, char in enumerate(_byte_characters())},
            "merges": [],
        },
    }


def _byte_characters() -> list[str]:
    """How byte-level tokenizers spell the 256 bytes: visible Latin-1 as itself, the rest from U+0100 on, in order."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(spare)) for byte in range(256)]
