"""The prompts of a raw completion: a text, a list of texts, token ids, or a list of those. Pure.

Types are exact. It knows no vocabulary: whether an id exists is for whoever has the model.
"""

from typing import Any

from hydra.protocol.batch import Int32Column, token_ids
from hydra.protocol.refusal import refuse

PROMPTS_MAX = 128
TOKEN_IDS_END = 1 << 31

Prompt = str | Int32Column


def prompts_of(prompt: Any) -> tuple[Prompt, ...]:
    """Raises RefusalError invalid_value."""
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        raise _no()
    prompts: tuple[Prompt, ...]
    if all(isinstance(item, str) for item in prompt):
        prompts = tuple(prompt)
    elif all(type(item) is int for item in prompt):
        prompts = (token_ids(listed_ids(prompt, "prompt")),)
    elif all(isinstance(item, list) and item for item in prompt):
        prompts = tuple(token_ids(listed_ids(item, "prompt")) for item in prompt)
    else:
        raise _no()
    if len(prompts) > PROMPTS_MAX:
        message = f"at most {PROMPTS_MAX} prompts in one request, not {len(prompts)}; send them in several"
        raise refuse("invalid_value", message, param="prompt")
    return prompts


def _no() -> Exception:
    message = "prompt must be a string, a list of strings, a list of token ids, or a list of those; and not empty"
    return refuse("invalid_value", message, param="prompt")


def listed_ids(values: Any, param: str) -> list[int]:
    """Of a JSON list. Raises RefusalError invalid_value."""
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < TOKEN_IDS_END for value in values):
        raise refuse("invalid_value", f"{param} must be a list of token ids", param=param)
    return values
