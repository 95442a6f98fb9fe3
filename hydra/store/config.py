"""config.json of a Llama model, as checked numbers.

Promises: whatever it returns is within range and means what LlamaForCausalLM means by it; what would change the
arithmetic in a way nobody here computes (other architectures, scaled rope, other activations, quantisation) is refused
by name. Refuses to know weights and their files.
"""

from pathlib import Path
from typing import Any

import attrs

from hydra.protocol.refusal import RefusalError, refuse
from hydra.protocol.sampling import DefaultSampling
from hydra.store.config_values import Values
from hydra.store.directory import read_json_file, shown
from hydra.store.generation_config import read_generation

ARCHITECTURE = "LlamaForCausalLM"
CONFIG = "config.json"


@attrs.frozen(kw_only=True)
class LlamaConfig:
    """The checked values, named as in ModelSpec; `raw` is the file they came from, for the fingerprint."""

    raw: bytes
    n_layers: int
    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    default_sampling: DefaultSampling


def read_config(directory: Path) -> LlamaConfig:
    """Reads config.json, and of generation_config.json what it says of tokens and sampling."""
    found = read_json_file(directory, CONFIG)
    if found is None:
        raise refuse("bad_model", f"{directory} has no {CONFIG}. Give a directory in the Hugging Face layout.")
    config, raw = found
    _check_supported(config)
    hidden = _int(config, "hidden_size", 65_536)
    n_heads = _int(config, "num_attention_heads", 1024)
    n_kv_heads = _int(config, "num_key_value_heads", 1024, n_heads)
    if n_heads % n_kv_heads:
        raise _bad(f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}")
    if config.get("head_dim") is None and hidden % n_heads:
        raise _bad(f"hidden_size {hidden} is not a multiple of num_attention_heads {n_heads}")
    head_dim = _int(config, "head_dim", 1024, hidden // n_heads)
    if head_dim % 2:
        raise _bad(f"head_dim {head_dim} is odd, which rotary positions cannot halve")
    vocab = _int(config, "vocab_size", 2**22)
    speech = read_generation(directory, Values(config, CONFIG), vocab)
    return LlamaConfig(
        raw=raw,
        n_layers=_int(config, "num_hidden_layers", 1024),
        hidden=hidden,
        intermediate=_int(config, "intermediate_size", 2**20),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        max_positions=_int(config, "max_position_embeddings", 2**24, 2048),
        norm_eps=_float(config, "rms_norm_eps", 1.0, 1e-6),
        rope_theta=_rope_theta(config),
        tied=_bool(config, "tie_word_embeddings"),
        attention_bias=_bool(config, "attention_bias"),
        mlp_bias=_bool(config, "mlp_bias"),
        bos_id=speech.bos_id,
        eos_ids=speech.eos_ids,
        default_sampling=speech.default_sampling,
    )


def _check_supported(config: dict[str, Any]) -> None:
    architectures = config.get("architectures")
    if architectures != [ARCHITECTURE]:
        raise _unsupported("architectures", architectures, f"[{ARCHITECTURE!r}]")
    if config.get("model_type", "llama") != "llama":
        raise _unsupported("model_type", config["model_type"], "'llama'")
    for key in ("hidden_act", "hidden_activation"):
        if config.get(key, "silu") != "silu":
            raise _unsupported(key, config[key], "'silu'")
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise _unsupported("quantization_config", method, "unquantised weights")


def _rope_theta(config: dict[str, Any]) -> float:
    """The base of plain rotary positions, wherever this generation of config files keeps it."""
    known: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):  # the later wins, as in transformers
        rope = config.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise _bad(f"{key} is not an object")
        kind = rope.get("rope_type", rope.get("type"))
        if kind != "default":
            raise _unsupported(f"{key}: rope type", kind, "'default'")
        known.update(rope)
    fraction = known.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if fraction not in (None, 1):
        raise _unsupported("partial_rotary_factor", fraction, "1")
    if known.get("rope_theta") is None:
        known["rope_theta"] = config.get("rope_theta")
    return _float(known, "rope_theta", 1e12, 10_000.0)


def _int(config: dict[str, Any], key: str, limit: int, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not int or not 1 <= value <= limit:
        raise _bad(f"{key} must be an integer from 1 to {limit}, not {shown(value)}")
    return value


def _float(config: dict[str, Any], key: str, limit: float, default: float) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) not in (int, float) or not 0 < value <= limit:
        raise _bad(f"{key} must be a number above 0 and at most {limit:g}, not {shown(value)}")
    return float(value)


def _bool(config: dict[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _bad(f"{key} must be true or false, not {shown(value)}")
    return value


def _bad(what: str) -> RefusalError:
    return refuse("bad_model", f"{CONFIG}: {what}.")


def _unsupported(what: str, value: Any, known: str) -> RefusalError:
    return refuse("unsupported", f"{CONFIG}: {what} is {shown(value)}; only {known} is supported.")
