"""Which modules a config's lists mean: as the library matches them that writes such lists."""

import importlib.util
import itertools
import time
from pathlib import Path

import pytest

from hydra.protocol.refusal import RefusalError
from hydra.store.models.config_values import Values
from hydra.store.models.quantised.name_patterns import MATCHING_S, NAME_MAX, Matching, Skips, TargetNames
from hydra.store.models.quantised.read_quantisation import read_quantisation
from tests.unit.store.quantised.checkpoints import AUTO_ROUND, AWQ, FP8, GPTQ, INT4, NF4, compressed

MODULES = [
    "model.layers.1.self_attn.q_proj",
    "model.layers.11.self_attn.q_proj",
    "model.layers.1.mlp.gate_proj",
    "model.layers.1.mlp.gate",
    "model.layers.1.mlp.experts.3.down_proj",
    "model.language_model.layers.1.mlp.down_proj",
    "lm_head",
    "language_model.lm_head",
]
SKIPPED = [
    "lm_head", "model.layers.1", "model.layers.1.", "model.layers.*.mlp", "mlp.gate", "gate", "q_proj", ".*q_proj",
    "model.layers.[01]$", "model.layers.(1|2).self_attn", "self_attn", "model", "", "experts.*", "layers.1.mlp.gate",
    "model.layers.1.mlp.gat", "model\\.layers\\.1\\.mlp\\.gate_proj", "x|model.layers.1",
]  # fmt: skip


def test_a_list_of_modules_is_matched_as_transformers_does():
    (root,) = importlib.util.find_spec("transformers").submodule_search_locations  # that one file, not all of it
    spec = importlib.util.spec_from_file_location("rules", Path(root) / "quantizers" / "quantizers_utils.py")
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    for patterns in [*((one,) for one in SKIPPED), *itertools.pairwise(SKIPPED)]:
        skips = Skips.of(patterns, "here")
        for module in MODULES:
            assert skips.skip(module) is not rules.should_convert_module(module, list(patterns)), (patterns, module)


@pytest.mark.parametrize(
    ("targets", "name", "kinds", "taken"),
    [
        (["Linear"], "model.layers.1.mlp.up_proj", ["Linear"], "Linear"),
        (["Linear"], "model.embed_tokens", ["Embedding"], None),
        (["up_proj"], "model.layers.1.mlp.up_proj", ["Linear"], None),  # a name is whole or it is another
        (["re:up_proj"], "model.layers.1.mlp.up_proj", ["Linear"], None),  # from the beginning
        (["re:.*up"], "model.layers.1.mlp.up_proj", ["Linear"], "re:.*up"),  # not to the end
        (["Linear", "re:.*up_proj"], "model.layers.1.mlp.up_proj", ["Linear"], "re:.*up_proj"),
        (["Linear", "re:.*b", "re:.*a", "ab"], "ab", ["Linear"], "ab"),
        (["Linear", "re:.*b", "re:.*a"], "ab", ["Linear"], "re:.*a"),
    ],
)
def test_targets_are_matched_as_compressed_tensors_does(targets, name, kinds, taken):
    assert TargetNames.of(targets, "here").first(name, kinds) == taken


def schemes(quantization_config, *modules, kind="linear"):
    quantisation = read_quantisation(Values({"quantization_config": quantization_config}, "config.json"))
    taken = [quantisation.scheme_of(module, kind) for module in modules]
    return [None if scheme is None else scheme.encoding.name for scheme in taken]


def test_groups_with_targets_of_their_own_and_what_is_ignored():
    config = compressed("pack-quantized", INT4, ignore=["lm_head", "re:.*mlp.gate$", "model.layers.3.mlp.up_proj"])
    config["format"] = "mixed-precision"
    fine = {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False, "symmetric": True}
    config["config_groups"]["group_1"] = {
        "format": "float-quantized",
        "targets": ["re:.*self_attn.(q|k|v|o)_proj$"],
        "weights": fine,
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    }
    names = ["self_attn.q_proj", "mlp.up_proj", "mlp.gate", "mlp.gate_proj"]
    assert schemes(config, *(f"model.layers.3.{name}" for name in names)) == [
        "float8:8:1x0", None, None, "packed:4:1x128"
    ]  # fmt: skip
    assert schemes(config, "model.layers.4.mlp.up_proj") == ["packed:4:1x128"]
    assert schemes(config, "lm_head", kind="head") == [None]
    assert schemes(config | {"ignore": []}, "lm_head", kind="head") == ["packed:4:1x128"]
    assert schemes(config | {"ignore": []}, "model.embed_tokens", kind="embedding") == [None]


def test_gptq_takes_the_first_entry_of_dynamic_that_matches():
    dynamic = {
        "-:.*\\.0\\..*": {},
        "+:.*\\.1\\..*gate.*": {"bits": 8, "group_size": 32},
        ".*\\.1\\..*": {"desc_act": True},
        "model.layers.1.mlp.up_proj": {"bits": 8},
    }
    config = GPTQ | {"dynamic": dynamic}
    modules = ["0.mlp.up_proj", "1.mlp.gate_proj", "1.mlp.up_proj", "2.mlp.gate_proj"]
    assert schemes(config, *(f"model.layers.{module}" for module in modules)) == [
        None, "gptq:8:1x32:less_one", "gptq:4:1x128:less_one:ordered", "gptq:4:1x128:less_one"
    ]  # fmt: skip
    assert schemes(config, "lm_head", kind="head") == [None]
    assert schemes(config | {"lm_head": True}, "lm_head", kind="head") == ["gptq:4:1x128:less_one"]
    within = GPTQ | {"modules_in_block_to_quantize": [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.up_proj"]]}
    assert schemes(within, "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj") == [
        "gptq:4:1x128:less_one", None
    ]  # fmt: skip


def test_auto_rounds_own_entries_come_before_expressions():
    extra = {
        "model.layers.0.mlp.up_proj": {"bits": 8},
        ".*mlp.*": {"bits": 16, "data_type": "float"},
        "down_proj": {"bits": 8},
        "lm_head": {"bits": 4, "group_size": 64},
    }
    config = AUTO_ROUND | {"extra_config": extra}
    modules = ["mlp.up_proj", "mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj"]
    assert schemes(config, *(f"model.layers.0.{module}" for module in modules)) == [
        "gptq:8:1x128:less_one", None, None, "gptq:4:1x128:less_one"
    ]  # fmt: skip
    assert schemes(config, "lm_head", kind="head") == ["gptq:4:1x64:less_one"]
    assert schemes(AUTO_ROUND, "lm_head", kind="head") == [None]
    assert schemes(AUTO_ROUND | {"packing_format": "auto_round"}, "model.layers.0.mlp.up_proj") == [
        "gptq:4:1x128:stored"
    ]
    elsewhere = AUTO_ROUND | {"block_name_to_quantize": "model.vision.blocks,model.layers"}
    assert schemes(elsewhere, "model.layers.0.mlp.up_proj", "model.mtp.0.mlp.up_proj") == [
        "gptq:4:1x128:less_one",
        None,
    ]


@pytest.mark.parametrize(
    ("config", "key"),
    [(AWQ, "modules_to_not_convert"), (FP8, "modules_to_not_convert"), (NF4, "llm_int8_skip_modules")],
)
def test_a_list_of_what_stays_as_it_is(config, key):
    def taken(patterns, module, kind="linear"):
        quantisation = read_quantisation(Values({"quantization_config": config | {key: patterns}}, "config.json"))
        return quantisation.scheme_of(module, kind) is not None

    assert taken(["model.layers.1"], "model.layers.11.mlp.up_proj")
    assert not taken(["model.layers.1"], "model.layers.1.mlp.up_proj")
    assert not taken(["up_proj", "lm_head"], "model.layers.1.mlp.up_proj")
    assert not taken(None, "lm_head", "head"), "the head is left out where nothing is said"
    assert not taken(["lm_head"], "lm_head", "head") and not taken([], "model.embed_tokens", "embedding")


SLOW = [
    "(a+)+$", "(a|a)*b", "(?:a*)*b", "(.*){9}", ".*.*.*.*.*.*x", "(a|a)" * 30 + "b", "a?" * 40 + "a" * 40, "(a)\\1",
    "(?P<n>a)", "(?i)a", "(?<=a)b", "x" * 3000, "(" * 500 + "a", ".{0,}.{0,}.{0,}.{0,}.{0,}.{0,}b",
    "\\w*\\w*\\w*\\w*\\w*\\w*-", "[a-z]+[a-z.]+[a-z]+[a.]+.+.+-", "a{1,999}" * 4,
]  # fmt: skip


@pytest.mark.parametrize("pattern", SLOW, ids=range(len(SLOW)))
def test_an_expression_that_may_take_long_is_not_tried(pattern):
    with pytest.raises(RefusalError) as caught:
        Matching("config.json: ignore").compile(pattern)
    assert caught.value.refusal.code in ("unsupported", "bad_model")
    assert caught.value.refusal.message.startswith("config.json: ignore: ")


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "a{3,1}", "(?:", "a)", "\\"])
def test_what_is_no_expression_is_refused(pattern):
    with pytest.raises(RefusalError, match=r"no regular expression|not tried"):
        Matching("here").compile(pattern)


def test_the_worst_expressions_that_are_tried_end_in_time():
    """Each is let in, and fails as late as it can on the longest name that there may be."""
    for pattern in (".*a.*a.*a.*b", "(a|b)(a|c)(a|d).*a.*a.*-", "[a-z]*[a-z]*[a-z]*[a-z]*-", "a?a?a?a?a?.*.*.*-"):
        matching = Matching("here")
        expression = matching.compile(pattern)
        assert not matching.match(expression, "a" * NAME_MAX)
        assert matching.used_s < MATCHING_S / 2
    with pytest.raises(RefusalError, match="too long"):
        matching.match(expression, "a" * (NAME_MAX + 1))


def test_all_attempts_together_end_in_time():
    matching = Matching("here", used_s=MATCHING_S)
    with pytest.raises(RefusalError, match="take longer than"):
        matching.search(matching.compile(".*b"), "a" * NAME_MAX)


def test_twenty_thousand_modules_and_a_thousand_names_are_matched_at_once():
    skips = Skips.of([f"model.layers.{n}.mlp.gate" for n in range(1000)] + ["re.*visual.*", "lm_head"], "here")
    began_s = time.thread_time()
    for layer in range(48):
        for expert in range(400):
            assert not skips.skip(f"model.layers.{layer}.mlp.experts.{expert}.gate_proj")
    assert time.thread_time() - began_s < 2.0
