"""config.json of a model, as checked numbers.

Promises: whatever it returns is within range and means what the named architecture means by it; what would change the
arithmetic in a way nobody here computes (other architectures, rope types, activations, quantisation) is refused by
name. Of a multimodal model it is the text model's config that is read. Refuses to know weights and their files.
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
from hydra.store.models.families.wrappers import MULTIMODAL
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
    architecture, family, text = _text_model(config)
    quantisation = read_quantisation(config)
    if quantisation is None and text is not config:
        quantisation = read_quantisation(text)
    shape = family.read(text, architecture)
    refuse_the_unread(text)
    speech = read_generation(directory, [config] if text is config else [config, text], shape.vocab)
    return ModelConfig(
        raw=raw, shape=shape, names=family.names, speech=speech, quantisation=quantisation, dtype=_dtype(config, text)
    )


def _text_model(config: Values) -> tuple[str, Family, Values]:
    """(architecture, the family of what is computed, its own config)."""
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    wrapper = MULTIMODAL.get(name) if isinstance(name, str) else None
    family = FAMILIES.get(name) or FAMILIES.get(_with_head(name)) if isinstance(name, str) else None
    known = wrapper or family
    if known is None:
        raise config.unsupported("architectures", architectures, "one of " + ", ".join([*FAMILIES, *MULTIMODAL]))
    if config.has("model_type") and config.get("model_type") != known.model_type:
        raise config.unsupported("model_type", config.get("model_type"), f"{known.model_type!r} for {name}")
    if wrapper is not None:
        text = wrapper.text(config)
        return wrapper.architecture, wrapper.family(text), text
    assert family is not None
    return family.architecture, family, config


def _with_head(base: str) -> str:
    """What a base model is called together with its head: its weights are saved under the base model's name."""
    return f"{base.removesuffix('Model').removesuffix('Text')}ForCausalLM" if base.endswith("Model") else ""


def _dtype(*configs: Values) -> Dtype:
    """What a quantised model is computed in: most of its numbers have no dtype of their own."""
    names: dict[object, Dtype] = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
    stated = [config.get(key) for config in configs for key in ("dtype", "torch_dtype") if config.has(key)]
    return next((names[name] for name in stated if isinstance(name, str) and name in names), "bfloat16")
