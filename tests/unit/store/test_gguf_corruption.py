"""Broken GGUF files are refused at once, each with the file and the tensor or key that is wrong."""

import struct
import time
from collections.abc import Callable, Iterator

import attrs
import pytest

from hydra.protocol.refusal import RefusalError
from hydra.store.models.library import LocalLibrary
from tests.unit.store.gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    I32,
    TEXT,
    U32,
    Draft,
    Raw,
    Tensor,
    file_bytes,
    header_bytes,
    small_llama,
    with_key,
)

REFUSED_WITHIN_S = 2.0
Change = Callable[[Draft], object]
Cut = Callable[[bytes, Draft], bytes]


@attrs.frozen
class Case:
    """`change` of the draft, then `cut` of the bytes; `says` is what the refusal must name beside the file."""

    label: str
    says: str
    change: Change = lambda draft: None
    cut: Cut = lambda raw, draft: raw
    code: str = "bad_model"


def setting(**values: object) -> Change:
    return lambda draft: [setattr(draft, name, value) for name, value in values.items()]


def of_tensor(name: bytes, **values: object) -> Change:
    return lambda draft: [setattr(draft.tensor(name), key, value) for key, value in values.items()]


def key(name: bytes, value: object, kind: int | None = None) -> Change:
    return lambda draft: draft.key(name, value, kind)


def without(name: bytes) -> Change:
    return lambda draft: [draft.keys.remove(each) for each in list(draft.keys) if each[0] == name]


def lacking(name: bytes) -> Change:
    return lambda draft: draft.tensors.remove(draft.tensor(name))


def huge(count: int) -> Raw:
    return Raw(struct.pack("<IQ", U32, count))


Q, NORM, DOWN = b"blk.1.attn_q.weight", b"blk.1.attn_norm.weight", b"blk.1.ffn_down.weight"
TOKENS, MERGES, TYPES = (b"tokenizer.ggml.%s" % name for name in (b"tokens", b"merges", b"token_type"))


def openings() -> Iterator[Case]:
    yield Case("empty", "empty", cut=lambda raw, draft: b"")
    yield Case("two bytes", "GGUF", cut=lambda raw, draft: raw[:2])
    yield Case("another magic", "does not begin with", setting(magic=b"GGML"))
    yield Case("a page", "HTML", cut=lambda raw, draft: b"<!DOCTYPE html><html><body>log in</body></html>" * 20)
    yield Case("zeros", "zeros", cut=lambda raw, draft: bytes(5000))
    for version in (0, 1, 4, 1 << 20):
        yield Case(f"version {version}", f"version {version}", setting(version=version))
    yield Case("big-endian", "big-endian", setting(order=">"))
    yield Case("too many tensors", "tensors", setting(n_tensors=1 << 63))
    yield Case("too many keys", "keys", setting(n_keys=1 << 63))
    yield Case("one tensor more", "tensor 21 of 21", setting(n_tensors=21), lambda raw, draft: header_bytes(draft))
    yield Case("one key more", "key 17 of 17", setting(n_keys=17, tensors=[]), lambda raw, draft: header_bytes(draft))
    for part in range(1, 9):
        yield Case(
            f"header cut at {part}/9",
            "cut short",
            cut=lambda raw, draft, part=part: header_bytes(draft)[: -(part * 180)],
        )
    yield Case("data cut", "blk.1.ffn_down.weight", setting(tail=-32))
    yield Case("no data", "token_embd.weight", cut=lambda raw, draft: header_bytes(draft))


def keys() -> Iterator[Case]:
    yield Case("a key twice", "llama.block_count", with_key(b"llama.block_count", U32, 2))
    yield Case("an unknown value type", "odd.key", with_key(b"odd.key", 13, Raw(b"\0" * 8)))
    yield Case("an array of arrays", "odd.key", with_key(b"odd.key", ARRAY, Raw(struct.pack("<IQ", ARRAY, 2))))
    yield Case("a huge array", "odd.key", with_key(b"odd.key", ARRAY, huge(1 << 60)))
    yield Case("a huge array of texts", "odd.key", with_key(b"odd.key", ARRAY, Raw(struct.pack("<IQ", TEXT, 1 << 40))))
    yield Case("a huge text", "odd.key", with_key(b"odd.key", TEXT, Raw(struct.pack("<Q", 1 << 50))))
    yield Case(
        "a lying text in an array", "odd.key", with_key(b"odd.key", ARRAY, Raw(struct.pack("<IQQ", TEXT, 1, 1 << 62)))
    )
    yield Case("a text that is not UTF-8", "general.name", with_key(b"general.name", TEXT, b"\xff\xfe"))
    yield Case("a key that is not UTF-8", "key 17", with_key(b"\xff", U32, 1))
    yield Case("a truth value of 7", "odd.key", with_key(b"odd.key", BOOL, 7))
    yield Case("an odd alignment", "alignment", with_key(b"general.alignment", U32, 24))
    yield Case("no alignment", "general.alignment", with_key(b"general.alignment", U32, 0))
    yield Case("no architecture", "general.architecture", without(b"general.architecture"))
    yield Case(
        "another architecture", "general.architecture", key(b"general.architecture", b"mamba"), code="unsupported"
    )
    yield Case("an adapter", "general.type", with_key(b"general.type", TEXT, b"adapter"), code="unsupported")
    yield Case("no layers", "block_count", key(b"llama.block_count", 0))
    yield Case("a text for a number", "block_count", key(b"llama.block_count", b"two", TEXT))
    yield Case("absurd layers", "block_count", key(b"llama.block_count", 1 << 31))
    yield Case("more heads than channels", "dimension_count", key(b"llama.attention.head_count", 1000))
    yield Case("an infinite base", "freq_base", key(b"llama.rope.freq_base", float("inf")))
    yield Case("no epsilon", "epsilon", without(b"llama.attention.layer_norm_rms_epsilon"))
    yield Case("a scale nobody computes", "logit_scale", with_key(b"llama.logit_scale", F32, 0.5), code="unsupported")
    yield Case(
        "layers that differ", "head_count", key(b"llama.attention.head_count", (U32, [4, 2]), ARRAY), code="unsupported"
    )
    yield Case(
        "an odd split",
        "part 3 of 4",
        lambda draft: (with_key(b"split.no", U32, 2)(draft), with_key(b"split.count", U32, 4)(draft)),
    )


def tokens() -> Iterator[Case]:
    yield Case("no tokens", "tokenizer.ggml.tokens", without(TOKENS))
    yield Case("numbers for tokens", "tokenizer.ggml.tokens", key(TOKENS, (U32, [1, 2])))
    yield Case(
        "a token twice",
        "tokenizer.ggml.tokens",
        key(TOKENS, (TEXT, [b"a", b"b", b"a"] + [b"x%d" % n for n in range(21)])),
    )
    yield Case(
        "a token not UTF-8", "tokenizer.ggml.tokens", key(TOKENS, (TEXT, [b"\xff"] + [b"x%d" % n for n in range(23)]))
    )
    yield Case("too few types", "tokenizer.ggml.token_type", key(TYPES, (I32, [1, 1])))
    yield Case("no merges", "tokenizer.ggml.merges", without(MERGES))
    yield Case("a merge of unknowns", "tokenizer.ggml.merges", key(MERGES, (TEXT, [b"a z"])))
    yield Case("a merge of one", "tokenizer.ggml.merges", key(MERGES, (TEXT, [b"ab"])))
    yield Case("an unknown cut", "tokenizer.ggml.pre", key(b"tokenizer.ggml.pre", b"mystery"), code="unsupported")
    yield Case("an unknown kind", "tokenizer.ggml.model", key(b"tokenizer.ggml.model", b"bert"), code="unsupported")
    yield Case(
        "no scores",
        "tokenizer.ggml.scores",
        lambda draft: (draft.key(b"tokenizer.ggml.model", b"llama"), without(MERGES)(draft)),
    )
    yield Case(
        "a nameless template", "chat_template.tool", with_key(b"tokenizer.chat_templates", ARRAY, (TEXT, [b"tool"]))
    )


def tensors() -> Iterator[Case]:
    yield Case("a tensor twice", "blk.1.attn_q.weight", lambda draft: draft.tensors.append(Tensor(Q, [32, 32])))
    yield Case("a tensor lacking", "blk.1.attn_q.weight", lacking(Q))
    yield Case("no embedding", "token_embd.weight", lacking(b"token_embd.weight"))
    yield Case(
        "a tensor too many",
        "blk.1.mystery.weight",
        lambda draft: draft.tensors.append(Tensor(b"blk.1.mystery.weight", [32])),
    )
    yield Case(
        "a layer too many",
        "blk.2.attn_q.weight",
        lambda draft: draft.tensors.append(Tensor(b"blk.2.attn_q.weight", [32, 32])),
    )
    yield Case("a name too long", "tensor 21 of 21", lambda draft: draft.tensors.append(Tensor(b"x" * 300, [32])))
    yield Case("no dimensions", "blk.1.attn_norm.weight", of_tensor(NORM, dims=[]))
    yield Case("five dimensions", "blk.1.attn_norm.weight", of_tensor(NORM, dims=[32, 1, 1, 1, 1]))
    yield Case("an empty dimension", "blk.1.attn_norm.weight", of_tensor(NORM, dims=[0], n_bytes=128))
    yield Case("absurd dimensions", "blk.1.attn_norm.weight", of_tensor(NORM, dims=[1 << 62, 1 << 62], n_bytes=128))
    yield Case("large dimensions", "blk.1.attn_norm.weight", of_tensor(NORM, dims=[1 << 20, 1 << 20], n_bytes=128))
    yield Case("on its side", "blk.1.ffn_down.weight", of_tensor(DOWN, dims=[32, 64]))
    yield Case("a longer norm", "blk.1.attn_norm.weight", of_tensor(NORM, dims=[64]))
    yield Case("beyond the file", "blk.1.attn_norm.weight", of_tensor(NORM, offset=1 << 50))
    yield Case("crooked", "blk.1.attn_norm.weight", of_tensor(NORM, offset=33))
    yield Case("overlapping", "overlap", of_tensor(NORM, offset=32))
    yield Case("broken blocks", "blk.1.attn_norm.weight", of_tensor(NORM, dims=[33], kind=2))
    yield Case("a norm in blocks", "blk.1.attn_norm.weight", of_tensor(NORM, kind=2), code="unsupported")
    for number, name in ((16, "IQ2_XXS"), (18, "IQ3_XXS"), (19, "IQ1_S"), (34, "TQ1_0"), (15, "Q8_K"), (40, "NVFP4")):
        yield Case(f"type {name}", f"blk.1.attn_q.weight.*{name}", wide(number), code="unsupported")
    for number, says in ((4, "taken out"), (38, "taken out"), (140, "ik_llama"), (99999, "unknown")):
        yield Case(
            f"type {number}", f"blk.1.attn_q.weight.*{number}.*{says}", of_tensor(Q, kind=number), code="unsupported"
        )
    for number in (24, 26, 28):
        yield Case(
            f"numbers of type {number}",
            "blk.1.attn_q.weight",
            of_tensor(Q, kind=number, n_bytes=32 * 32 * 8),
            code="unsupported",
        )


def wide(number: int) -> Change:
    """A model whose rows are whole blocks of any type."""

    def change(draft: Draft) -> None:
        draft.key(b"llama.embedding_length", 256)
        for tensor in draft.tensors:
            tensor.dims = [256 if dim == 32 else dim for dim in tensor.dims]
            if b"attn_k" in tensor.name or b"attn_v" in tensor.name:
                tensor.dims = [256, 128]
        draft.tensor(Q).kind = number

    return change


CASES = [*openings(), *keys(), *tokens(), *tensors()]


def test_the_file_that_is_broken_is_whole(tmp_path):
    path = tmp_path / "whole.gguf"
    path.write_bytes(file_bytes(small_llama()))
    described = LocalLibrary(cache_dir=tmp_path / "cache").describe(str(path))
    assert described.spec.n_layers == 2 and described.spec.eos_ids == (23,) and described.spec.tied
    assert len(CASES) >= 50 and len({case.label for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_broken_file_is_refused(tmp_path, case):
    draft = small_llama()
    case.change(draft)
    path = tmp_path / "broken.gguf"
    path.write_bytes(case.cut(file_bytes(draft), draft))
    started_s = time.monotonic()
    with pytest.raises(RefusalError, match=f"(?s){case.says}") as caught:
        LocalLibrary(cache_dir=tmp_path / "cache").describe(str(path))
    assert time.monotonic() - started_s < REFUSED_WITHIN_S
    assert caught.value.refusal.code == case.code
    assert "broken.gguf" in str(caught.value)


def test_a_vast_header_is_refused_before_it_is_walked(tmp_path):
    """60 MB of empty texts."""
    draft = small_llama()
    count = 7_000_000
    draft.keys.append((b"odd.key", ARRAY, Raw(struct.pack("<IQ", TEXT, count) + bytes(8 * count))))
    path = tmp_path / "broken.gguf"
    path.write_bytes(file_bytes(draft))
    started_s = time.monotonic()
    with pytest.raises(RefusalError, match=r"broken\.gguf.*odd\.key"):
        LocalLibrary(cache_dir=tmp_path / "cache").describe(str(path))
    assert time.monotonic() - started_s < REFUSED_WITHIN_S
