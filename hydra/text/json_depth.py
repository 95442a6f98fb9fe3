"""How deeply a JSON value is nested. Looked at before anything walks through the value by recursion."""

from typing import Any

JSON_DEPTH_MAX = 64


def json_depth(value: Any) -> int:
    """Levels of a JSON value, counted to one beyond JSON_DEPTH_MAX."""
    deepest, level = 0, [value]
    while level:
        deepest += 1
        if deepest > JSON_DEPTH_MAX:
            break
        children = [
            item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)
        ]
        level = [child for group in children for child in group]
    return deepest
