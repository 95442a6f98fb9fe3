"""A chat template, rendered inside bounds: it reaches no Python object, turns no endless loop, builds no huge text.

A template comes from a model directory and is not trusted. It is compiled once, in a closed world (template_sandbox);
each rendering has a budget of its own (template_budget). It does not know tokens.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
from jinja2 import TemplateError, environment, nodes
from jinja2.meta import find_undeclared_variables

from hydra.protocol.refusal import refuse
from hydra.text.chat_template.budget import Budget, characters_of, spending
from hydra.text.chat_template.call_arguments import CallForm
from hydra.text.chat_template.sandbox import SandboxEnvironment

SOURCE_MAX = 128 << 10  # characters; the longest published ones have a tenth of it
WRONG = (
    TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError,
    ValueError,
)  # fmt: skip  # what nonsense in a template can raise
# What stands in for a model's own tokens while a template is tried: it may glue them to other text.
TRIED_VALUES: dict[str, Any] = {
    **{f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")},
    "documents": None,
    "add_generation_prompt": False,
}
TRIED_TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}},
}


@attrs.frozen(eq=False)
class ChatTemplate:
    """A compiled template, what it asks for (`names`) and the text that it brings along (`literals`)."""

    compiled: environment.Template
    names: frozenset[str]
    literals: str  # all of them, with a NUL between each two
    mentions_calls: bool

    @classmethod
    def of(cls, source: str) -> "ChatTemplate":
        """Raises RefusalError invalid_value: it makes no sense, or is not available here."""
        if len(source) > SOURCE_MAX:
            raise refuse("invalid_value", f"the chat template is longer than {SOURCE_MAX} characters", param="messages")
        world = SandboxEnvironment()
        try:
            with spending(Budget()):
                parsed = world.parse(source)
                names = frozenset(find_undeclared_variables(parsed))
                found = [node.data for node in parsed.find_all(nodes.TemplateData)]
                found += [node.value for node in parsed.find_all(nodes.Const) if isinstance(node.value, str)]
                code = world.compile(parsed)
                compiled = world.template_class.from_code(world, code, world.globals)
        except WRONG as error:
            raise refuse(
                "invalid_value", f"the chat template makes no sense: {told(error)}", param="messages"
            ) from error
        return cls(compiled, names, "\0".join(found), "tool_calls" in source)

    @cached_property
    def call_form(self) -> CallForm:
        """How it wants earlier calls: tried once, each rendering with a budget of its own."""
        if not self.mentions_calls:
            return CallForm()
        values = TRIED_VALUES | {"tools": [TRIED_TOOL] if "tools" in self.names else None}
        return CallForm.of(lambda messages: self.render(messages, values))

    def render(self, messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> str:
        """Raises RefusalError invalid_value: it refuses these messages, makes no sense, or spends its budget."""
        named = {**values, "messages": list(messages)}
        try:
            with spending(Budget(characters_of(named))) as budget:
                pieces: list[str] = []
                for piece in self.compiled.generate(named):
                    budget.work()
                    budget.emit(len(piece))
                    pieces.append(piece)
                return "".join(pieces)
        except WRONG as error:
            raise refuse("invalid_value", f"the chat template refuses this: {told(error)}", param="messages") from error


def told(why: BaseException) -> str:
    """In a line, and never endless."""
    return (str(why) or type(why).__name__)[:500]
