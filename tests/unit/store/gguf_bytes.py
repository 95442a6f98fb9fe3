"""A small Llama as one GGUF file, written byte by byte, so that any of its bytes can lie."""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import attrs

U8, I32, U32, F32, BOOL, TEXT, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10
HIDDEN, INNER, LAYERS, VOCAB, HEADS, KV_HEADS = 32, 64, 2, 24, 4, 2
_FORMS = {U8: "<B", I32: "<i", U32: "<I", F32: "<f", BOOL: "<B", U64: "<Q"}
Q4_0_BLOCK = 18


@attrs.define
class Tensor:
    """`dims` as in the file: columns first. `offset` None: behind the tensor before it."""

    name: bytes
    dims: list[int]
    kind: int = 0
    offset: int | None = None
    n_bytes: int | None = None

    def length(self) -> int:
        if self.n_bytes is not None:
            return self.n_bytes
        count = 1
        for dim in self.dims:
            count *= dim
        return count * 4


@attrs.define
class Draft:
    """A file before it is written. `keys` are (name, type, value) triples; an array is (item type, items)."""

    keys: list[tuple[bytes, int, Any]]
    tensors: list[Tensor]
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    alignment: int = 32
    tail: int = 0  # bytes behind the last tensor; fewer than none: it was cut short
    order: str = "<"

    def key(self, name: bytes, value: Any, kind: int | None = None) -> None:
        """Another value of a key that is there."""
        at = next(number for number, key in enumerate(self.keys) if key[0] == name)
        self.keys[at] = (name, self.keys[at][1] if kind is None else kind, value)

    def tensor(self, name: bytes) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def value_bytes(kind: int, value: Any) -> bytes:
    if isinstance(value, Raw):
        return value.raw
    if kind == TEXT:
        return text(value)
    if kind == ARRAY:
        item, items = value
        return struct.pack("<IQ", item, len(items)) + b"".join(value_bytes(item, each) for each in items)
    return struct.pack(_FORMS[kind], value)


@attrs.frozen
class Raw:
    """Bytes in place of a value."""

    raw: bytes


def header_bytes(draft: Draft) -> bytes:
    counts = (draft.n_tensors, len(draft.tensors)), (draft.n_keys, len(draft.keys))
    parts = [draft.magic, struct.pack(f"{draft.order}I", draft.version)]
    parts += [struct.pack(f"{draft.order}Q", true if said is None else said) for said, true in counts]
    for name, kind, value in draft.keys:
        parts += [text(name), struct.pack("<I", kind), value_bytes(kind, value)]
    reached = 0
    for tensor in draft.tensors:
        offset = reached if tensor.offset is None else tensor.offset
        parts += [
            text(tensor.name),
            struct.pack("<I", len(tensor.dims)),
            struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims),
        ]
        parts.append(struct.pack("<IQ", tensor.kind, offset))
        reached += -(-tensor.length() // draft.alignment) * draft.alignment
    return b"".join(parts)


def file_bytes(draft: Draft) -> bytes:
    header = header_bytes(draft)
    header += b"\0" * (-len(header) % draft.alignment)
    data = sum(-(-tensor.length() // draft.alignment) * draft.alignment for tensor in draft.tensors)
    return header + bytes(max(0, data + draft.tail))


def small_llama() -> Draft:
    names = [b"blk.%d.%s.weight" % (layer, name) for layer in range(LAYERS) for name in DIMS]
    ends = [Tensor(b"token_embd.weight", [HIDDEN, VOCAB]), Tensor(b"output_norm.weight", [HIDDEN])]
    layers = [Tensor(name, list(DIMS[name.split(b".")[2]])) for name in names]
    return Draft(keys=list(KEYS), tensors=[*ends, *layers])


def with_key(name: bytes, kind: int, value: Any) -> Callable[[Draft], None]:
    return lambda draft: draft.keys.append((name, kind, value))


DIMS: dict[bytes, Sequence[int]] = {
    b"attn_norm": (HIDDEN,),
    b"attn_q": (HIDDEN, HIDDEN),
    b"attn_k": (HIDDEN, HIDDEN // HEADS * KV_HEADS),
    b"attn_v": (HIDDEN, HIDDEN // HEADS * KV_HEADS),
    b"attn_output": (HIDDEN, HIDDEN),
    b"ffn_norm": (HIDDEN,),
    b"ffn_gate": (HIDDEN, INNER),
    b"ffn_up": (HIDDEN, INNER),
    b"ffn_down": (INNER, HIDDEN),
}
TOKENS = [*(bytes([letter]) for letter in b"abcdefghijklmnopqrst"), "Ġ".encode(), b"ab", b"<s>", b"</s>"]
KEYS: tuple[tuple[bytes, int, Any], ...] = (
    (b"general.architecture", TEXT, b"llama"),
    (b"llama.context_length", U32, 128),
    (b"llama.embedding_length", U32, HIDDEN),
    (b"llama.block_count", U32, LAYERS),
    (b"llama.feed_forward_length", U32, INNER),
    (b"llama.attention.head_count", U32, HEADS),
    (b"llama.attention.head_count_kv", U32, KV_HEADS),
    (b"llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
    (b"llama.rope.freq_base", F32, 10000.0),
    (b"tokenizer.ggml.model", TEXT, b"gpt2"),
    (b"tokenizer.ggml.pre", TEXT, b"gpt-2"),
    (b"tokenizer.ggml.tokens", ARRAY, (TEXT, TOKENS)),
    (b"tokenizer.ggml.token_type", ARRAY, (I32, [1] * 22 + [3, 3])),
    (b"tokenizer.ggml.merges", ARRAY, (TEXT, [b"a b"])),
    (b"tokenizer.ggml.bos_token_id", U32, 22),
    (b"tokenizer.ggml.eos_token_id", U32, 23),
)
