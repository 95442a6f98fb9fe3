"""Small real tokenizers of every kind that model directories hold, trained here, saved as transformers saves them."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The quick brown fox jumps over the lazy dog. user assistant system im_start im_end",
    "Grüße aus Köln, 日本語のテキスト, emoji 🎉 and more words: hello world, hello there!",
    "def f(x):\n    return x + 1\n\nprint(f(2))  # <comment> [INST] s </s> think",
] * 4
CONTROL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.name is defined %}({{ m.name }}){% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{% if documents %}{% for d in documents %}{{ d.title }}: {{ d.text }}{% endfor %}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: bytes, and marks of thinking that are added but not special."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL])
    made.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>", "   ", "\n\n")])
    return made


def with_bos(made: Tokenizer) -> Tokenizer:
    bos = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", bos)])
    return made


def byte_fallback(scheme: str) -> Tokenizer:
    """As Llama 2 and Mistral: sentencepiece BPE. `scheme`: first, always, or legacy (normalizers in place of it)."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    trained.train_from_iterator(TEXTS[:2], trainers.BpeTrainer(vocab_size=200, special_tokens=CONTROL[:3]))
    content = json.loads(trained.to_str())
    vocab, merges = content["model"]["vocab"], [tuple(pair) for pair in content["model"]["merges"]]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL])
    made.add_tokens([AddedToken("<think>", normalized=False)])
    return with_bos(made)


def swallowing() -> Tokenizer:
    """As Phi-3: control tokens that swallow the blanks beside them."""
    made = byte_fallback("first")
    made.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=False, rstrip=True)])
    return made


def unigram() -> Tokenizer:
    """As T5 and XGLM. Its own vocabulary holds control tokens, which plain text can therefore become."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=CONTROL, unk_token="<unk>")
    made.train_from_iterator(TEXTS, trainer)
    return with_bos(made)


def word_piece() -> Tokenizer:
    """As BERT. Control tokens are looked for in normalized text, so that others become theirs."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=CONTROL[:3]))
    made.add_special_tokens([AddedToken(text, special=True, normalized=True) for text in CONTROL])
    return with_bos(made)


ZOO = {
    "byte level": (byte_level, CHATML),
    "byte level with bos": (lambda: with_bos(byte_level()), CHATML),
    "byte fallback, first": (lambda: byte_fallback("first"), INST),
    "byte fallback, always": (lambda: byte_fallback("always"), CHATML),
    "byte fallback, legacy": (lambda: byte_fallback("legacy"), INST),
    "swallowing": (swallowing, CHATML),
    "unigram": (unigram, CHATML),
    "word piece": (word_piece, CHATML),
}


def save(directory: Path, made: Tokenizer, template: str | list[dict[str, str]] | None, **config: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    content |= {"unk_token": "<unk>"} if made.token_to_id("<unk>") is not None else {}
    content |= {"chat_template": template} if template is not None else {}
    (directory / "tokenizer_config.json").write_text(json.dumps(content | config))
    return directory
