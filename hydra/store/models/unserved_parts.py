"""What multimodal checkpoints hold beside the text model: which of their tensors are passed over, and what they are.

Knows names only, and what a person calls the part that they make up.
"""

from collections import Counter
from collections.abc import Iterable

import attrs

from hydra.store.models.name_prefix import WRAPPERS

# The first component that does not only say how a language model was wrapped, and the part that stands under it.
_PARTS: dict[str, str] = {
    "visual": "vision",
    "vision_tower": "vision",
    "vision_model": "vision",
    "vision_encoder": "vision",
    "vision_adapter": "vision",
    "multi_modal_projector": "vision",
    "image_newline": "vision",
    "patch_merger": "vision",
    "audio_tower": "audio",
    "audio_projector": "audio",
    "mtp": "multi-token prediction",
}


@attrs.frozen
class Outside:
    """Tensors outside the decoder: how many belong to each part that is known, and the names of the rest."""

    parts: dict[str, int]
    unknown: tuple[str, ...]


def sorted_out(names: Iterable[str]) -> Outside:
    parts: Counter[str] = Counter()
    unknown: list[str] = []
    for name in names:
        part = _PARTS.get(next((piece for piece in name.split(".") if piece not in WRAPPERS), ""))
        if part is None:
            unknown.append(name)
        else:
            parts[part] += 1
    return Outside(dict(parts), tuple(unknown))
