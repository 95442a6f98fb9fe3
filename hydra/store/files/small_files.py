"""The files of a model beside its weights: their names, and how large one may be.

Refuses to know what is in them.
"""

SMALL_MAX_BYTES = 64 << 20  # the largest tokenizers have about 35 MB
SMALL_FILES = frozenset(
    (
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "chat_template.jinja",
        "chat_template.json",
    )
)
TEMPLATES = "additional_chat_templates/"
LENT_FILES = (  # what a frontend needs beside the weights
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)
