"""How a GGUF file's publisher would have its answers sampled, in the words of generation_config.json.

By the keys that files have for it; of a small model whose files are silent, greedily.
Ranges are checked where that config is read. Refuses to know what sampling does.
"""

from collections.abc import Mapping
from typing import Any

from hydra.store.gguf.gguf_metadata import Metadata, shortest

_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
# By organisation and base name. At temperature 1 a model of so few parameters loses its thread within a sentence; and
# in 4 bits it is so unsure of its first word that at its makers' 0.2 every third answer is another one than its best.
_SMALL: Mapping[tuple[object, object], Mapping[str, float]] = {
    ("HuggingFaceTB", "smollm2"): {"temperature": 0.0},
}


def stored_sampling(metadata: Metadata) -> dict[str, Any]:
    """Empty where neither says anything. Raises RefusalError bad_model for what is no number."""
    stored = {name: _number(metadata, key) for key, name in _KEYS.items() if metadata.has(key)}
    small = _SMALL.get((metadata.get("general.organization"), metadata.get("general.basename")), {})
    sampling = stored or dict(small)
    return {"do_sample": True, **sampling} if sampling else {}


def _number(metadata: Metadata, key: str) -> float | int:
    value = metadata.get(key)
    if type(value) is int:
        return value
    if type(value) is not float:
        raise metadata.bad(key, "must be a number")
    return shortest(value)
