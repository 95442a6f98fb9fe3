"""The model families that Hydra computes, by the name that config.json's `architectures` gives them.

May import: the rest of store.models, store.files, protocol.
Refuses to know: where a config comes from.
"""

from hydra.store.models.families.gemma import GEMMA2, GEMMA3
from hydra.store.models.families.gpt_oss import GPT_OSS
from hydra.store.models.families.llama import LLAMA
from hydra.store.models.families.mistral import MINISTRAL3, MISTRAL, MIXTRAL
from hydra.store.models.families.phi import PHI, PHI3
from hydra.store.models.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from hydra.store.models.family import Family

FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in (
        LLAMA,
        MISTRAL,
        MINISTRAL3,
        MIXTRAL,
        QWEN2,
        QWEN3,
        QWEN3_MOE,
        PHI,
        PHI3,
        GEMMA2,
        GEMMA3,
        GPT_OSS,
    )
}
