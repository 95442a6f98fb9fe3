"""The model families that Hydra computes, by the name that config.json's `architectures` gives them."""

from hydra.store.families.llama import LLAMA
from hydra.store.family import Family

FAMILIES: dict[str, Family] = {family.architecture: family for family in (LLAMA,)}
