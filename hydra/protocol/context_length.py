"""The sentence for a request that does not fit a model's context. One place, because clients read it.

OpenAI's clients, and what is built on them, know an overflow by its code or by these words: "maximum context length",
the numbers behind "requested", "in the messages", "reduce the length", and context_length_exceeded. They then cut the
conversation and try again; by any other sentence they give up.
"""

from typing import Literal

from hydra.protocol.refusal import Refusal


def context_overflow(
    limit: int, input_tokens: int, completion_tokens: int, param: Literal["messages", "prompt", "max_tokens"]
) -> Refusal:
    """`param`: what the client would have to shorten; max_tokens where only the ids are known."""
    if param == "messages":
        parts = f"{input_tokens} in the messages, {completion_tokens} in the completion"
    else:
        parts = f"{input_tokens} in your prompt; {completion_tokens} for the completion"
    shorter = "messages" if param == "messages" else "prompt"
    message = (
        f"This model's maximum context length is {limit} tokens. However, you requested "
        f"{input_tokens + completion_tokens} tokens ({parts}). "
        f"Please reduce the length of the {shorter} or completion. (context_length_exceeded)"
    )
    return Refusal(code="context_length_exceeded", message=message, param=param)
