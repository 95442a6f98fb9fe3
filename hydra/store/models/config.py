"""config.json of a model, as checked numbers.

Promises: whatever it returns is within range and means what the named architecture means by it; what would change the
arithmetic in a way nobody here computes (other architectures, rope types, activations, ways of quantising) is refused
by name. Refuses to know weights and their files.
"""

from pathlib import Path

import attrs

from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.model_spec import ModelShape
from hydra.protocol.refusal import refuse
from hydra.store.files.directory import read_json_file
from hydra.store.models.config_values import Values
from hydra.store.models.families import FAMILIES
from hydra.store.models.family import Family, refuse_the_unread
from hydra.store.models.generation_config import GenerationDefaults, read_generation
from hydra.store.models.names import Names
from hydra.store.models.quantised.quantisation import Quantisation
from hydra.store.models.quantised.read_quantisation import read_quantisation

CONFIG_FILE = "config.json"


@attrs.frozen(kw_only=True)
class ModelConfig:
    """What the directory's small files say; `raw` is config.json itself, for the fingerprint."""

    raw: bytes
    shape: ModelShape
    names: Names
    speech: GenerationDefaults
    quantisation: Quantisation | None = None
    dtype: Dtype = "bfloat16"  # of what is quantised; of other models the files say it


def read_config(directory: Path) -> ModelConfig:
    """Reads config.json and generation_config.json. Raises RefusalError: bad_model, unsupported."""
    content = read_json_file(directory, CONFIG_FILE)
    if content is None:
        raise refuse("bad_model", f"{directory} has no {CONFIG_FILE}. Give a directory in the Hugging Face layout.")
    config, raw = Values(content[0], CONFIG_FILE), content[1]
    family = _family(config)
    quantisation = read_quantisation(config)
    shape = family.read(config, family.architecture)
    refuse_the_unread(config)
    speech = read_generation(directory, config, shape.vocab)
    return ModelConfig(
        raw=raw, shape=shape, names=family.names, speech=speech, quantisation=quantisation, dtype=_dtype(config)
    )


def _family(config: Values) -> Family:
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    family = FAMILIES.get(name) or FAMILIES.get(_with_head(name)) if isinstance(name, str) else None
    if family is None:
        raise config.unsupported("architectures", architectures, "one of " + ", ".join(FAMILIES))
    if config.has("model_type") and config.get("model_type") != family.model_type:
        raise config.unsupported("model_type", config.get("model_type"), f"{family.model_type!r} for {name}")
    return family


def _with_head(base: str) -> str:
    """What a base model is called together with its head: its weights are saved under the base model's name."""
    return f"{base.removesuffix('Model').removesuffix('Text')}ForCausalLM" if base.endswith("Model") else ""


def _dtype(config: Values) -> Dtype:
    """What a quantised model is computed in: most of its numbers have no dtype of their own."""
    names: dict[object, Dtype] = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
    stated = config.get("dtype") if config.has("dtype") else config.get("torch_dtype")
    return names.get(stated, "bfloat16") if isinstance(stated, str) else "bfloat16"
