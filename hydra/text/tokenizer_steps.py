"""The steps of a tokenizer's normalizer, pre-tokenizer or decoder, as tokenizer.json writes each. Knows no meaning."""

import json
from collections.abc import Iterator
from typing import Any


def steps_of(part: Any) -> Iterator[dict[str, Any]]:
    """Of one part of a tokenizer, however its sequences are nested, in no order; none where it has no such part."""
    left: list[Any] = [] if part is None else [json.loads(part.__getstate__())]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            if one.get("type") == "Sequence":
                left += [value for value in one.values() if isinstance(value, list)]
            else:
                yield one
