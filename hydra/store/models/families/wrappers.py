"""Multimodal models whose text model is served: the class that config.json declares, and what lies under `text_config`.

Promises: the text model's own config, with the defaults that transformers has for it inside this wrapper. Refuses to
know vision and audio: their keys are not looked at.
"""

from collections.abc import Mapping
from typing import Any

import attrs

from hydra.store.models.config_values import Values
from hydra.store.models.families.gemma import GEMMA3
from hydra.store.models.families.mistral import MINISTRAL3, MISTRAL
from hydra.store.models.families.qwen import QWEN3_VL, QWEN3_VL_MOE
from hydra.store.models.family import Family

TEXT = "text_config"


@attrs.frozen(kw_only=True)
class Wrapper:
    """`texts` are what may lie inside, the usual one first; `defaults` stand for keys that its text_config lacks."""

    architecture: str
    model_type: str
    texts: tuple[Family, ...]
    tied: bool = False  # where neither config says it
    defaults: Mapping[str, Any] = {}

    def family(self, text: Values) -> Family:
        """Raises RefusalError unsupported for a text model of another kind."""
        model_type = text.get("model_type")
        if model_type is None:
            return self.texts[0]
        family = next((family for family in self.texts if family.model_type == model_type), None)
        if family is None:
            known = " or ".join(repr(family.model_type) for family in self.texts)
            raise text.unsupported("model_type", model_type, f"{known} within {self.architecture}")
        return family

    def text(self, config: Values) -> Values:
        """The text model's config. Raises RefusalError bad_model."""
        text = config.nested(TEXT)
        if text is None:
            raise config.bad(f"{self.architecture} has no {TEXT}")
        given = config.get(TEXT)
        tied = config.boolean("tie_word_embeddings", text.boolean("tie_word_embeddings", self.tied))
        return Values({**self.defaults, **given, "tie_word_embeddings": tied}, text.file)


# Gemma3TextConfig's: published files leave out what their model has by default.
_GEMMA3 = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}

MULTIMODAL: dict[str, Wrapper] = {
    wrapper.architecture: wrapper
    for wrapper in (
        Wrapper(
            architecture="Gemma3ForConditionalGeneration",
            model_type="gemma3",
            texts=(GEMMA3,),
            tied=True,
            defaults=_GEMMA3,
        ),
        Wrapper(
            architecture="Mistral3ForConditionalGeneration",
            model_type="mistral3",
            texts=(MISTRAL, MINISTRAL3),
            tied=True,
        ),
        Wrapper(architecture="Qwen3VLForConditionalGeneration", model_type="qwen3_vl", texts=(QWEN3_VL,)),
        Wrapper(architecture="Qwen3VLMoeForConditionalGeneration", model_type="qwen3_vl_moe", texts=(QWEN3_VL_MOE,)),
    )
}
