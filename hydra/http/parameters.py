"""Every parameter that OpenAI, vLLM, SGLang, llama.cpp or TGI know, and what becomes of it here. One table, pure.

Promises that no known parameter which would change the answer is dropped in silence: it is honoured, or refused by name
as soon as its value asks for something. What changes no answer is accepted. It does not know what a value means, beyond
whether it asks for anything; who reads the honoured ones checks their types and ranges.
"""

from typing import Any, Literal

import attrs
import orjson

from hydra.http.fields import key_name
from hydra.protocol.refusal import refuse
from hydra.protocol.sampling import SamplingParams

ApiKind = Literal["chat", "text"]
OF_ONE_ANSWER = frozenset({"choice", "stop_ids"})  # sampling parameters that no request sends: they are worked out


@attrs.frozen
class Parameter:
    """`honoured`: somebody reads it. `inert`: every value of it leads to the same answer, and to no complaint.

    `named`: accepted and not done, which the answer's header says. `refused`: a 400.
    """

    effect: Literal["honoured", "inert", "named", "refused"]
    neutral: tuple[Any, ...] = ()  # values that ask for nothing; null never does
    instead: str = ""  # what to use in its place

    def asks(self, value: Any) -> bool:
        return value is not None and not any(_same(value, neutral) for neutral in self.neutral)


def _same(value: Any, neutral: Any) -> bool:
    """Equal, and of one JSON type: false is no 0, and an empty list is no empty object."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _each(effect: Literal["honoured", "inert", "named"], names: str, *neutral: Any) -> dict[str, Parameter]:
    return {name: Parameter(effect, neutral) for name in names.split()}


def _refused(names: str, *neutral: Any, instead: str = "") -> dict[str, Parameter]:
    return {name: Parameter("refused", neutral, instead) for name in names.split()}


_SAMPLING_PARAMS = " ".join(field.name for field in attrs.fields(SamplingParams) if field.name not in OF_ONE_ANSWER)
_HONOURED = _each("honoured", _SAMPLING_PARAMS) | _each(
    "honoured",
    "model stream stream_options max_tokens max_completion_tokens n repeat_penalty stop stop_token_ids ignore_eos "
    "include_stop_str_in_output no_stop_trim return_token_ids skip_special_tokens best_of response_format",
)
_INERT = (
    # For whoever keeps accounts or caches; and blanks between special tokens, which only slow tokenizers ever wrote.
    _each(
        "inert",
        "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_options "
        "prompt_cache_retention spaces_between_special_tokens",
    )
    # Wishes about where and how it is computed; the answer is the same.
    | _each("named", "priority", 0)
    | _each("named", "request_id rid cache_salt extra_key session_id keep_alive data_parallel_rank prediction")
    | _each("named", "cache_prompt", True)
    | _each("named", "id_slot slot_id", -1)
    | _each("named", "n_keep n_discard", 0)
    # Calls are text as yet, and nothing counts them.
    | _each("named", "parallel_tool_calls", True)
    # What says how, beside another parameter that says whether; that one is refused.
    | _each("named", "mirostat_tau mirostat_eta dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers")
    | _each(
        "named", "xtc_threshold dynatemp_exponent guided_decoding_backend guided_whitespace_pattern truncation_side"
    )
)
_CONSTRAINTS = (
    _refused("guided_json json_schema schema")  # {} is a schema: any JSON
    | _refused("guided_json_object", False)
    | _refused("guided_regex guided_grammar grammar grammar_string regex ebnf structural_tag format", "")
    | _refused("guided_choice", [])
    | _refused("structured_outputs", {})
    | _refused("grammar_lazy", False)
    | _refused("grammar_triggers preserved_tokens", [])
    | _refused("functions", [], instead="tools")
    | _refused("function_call", "none", "auto", instead="tools")
    | _refused("bad_words logits_processors", [])
    | _refused("allowed_token_ids")
    | _refused("custom_logit_processor", "")
    | _refused("custom_params vllm_xargs", {})
    | _refused("stop_regex", "", [], instead="stop")
    | _refused("stop_token stop_sequence stop_sequences", "", [], instead="stop or stop_token_ids")
    | _refused("watermark safe_prompt", False)
    | _refused("web_search_options moderation")
)
_SAMPLING = (
    _refused("use_beam_search early_stopping", False)
    | _refused("beam_width num_beams length_penalty", 1)
    | _refused("num_return_sequences n_cmpl", 1, instead="n")
    | _refused("do_sample", True, instead="temperature: 0")
    | _refused("random_seed", instead="seed")
    | _refused("min_length min_new_tokens", 0, instead="min_tokens")
    | _refused("max_new_tokens max_length", instead="max_tokens")
    | _refused("n_predict", -1, instead="max_tokens")
    | _refused("no_repeat_ngram_size encoder_no_repeat_ngram_size", 0)
    | _refused("typical_p typical tfs tfs_z encoder_repetition_penalty guidance_scale", 1)
    | _refused("top_a epsilon_cutoff eta_cutoff penalty_alpha smoothing_factor", 0)
    | _refused("mirostat mirostat_mode dry_multiplier xtc_probability dynatemp_range min_keep", 0)
    | _refused("dynamic_temperature temperature_last", False)
    | _refused("top_n_sigma nsigma", -1, 0)
    | _refused("repeat_last_n", -1)  # penalties look at the whole context
    | _refused("penalize_nl", True)
    | _refused("samplers sampler_seq", [])
    | _refused("repetition_detection")
    | _refused("t_max_predict_ms", -1, 0)
)
_INPUT = (
    _refused("prompt_embeds input_embeds input_ids", [])
    | _refused("truncate_prompt_tokens truncate")
    | _refused("mm_processor_kwargs media_io_kwargs options", {})
    | _refused("image_data", [])
    | _refused("audio kv_transfer_params session_params")
    | _refused("modalities", ["text"])
    | _refused("suffix system", "")
    | _refused("lora lora_request lora_path adapter_id", "", [])
    | _refused("thinking think enable_thinking thinking_budget reasoning", instead="chat_template_kwargs")
    | _refused("thinking_token_budget")
    | _refused("verbosity", "medium")
)
_OUTPUT = (
    _refused("prompt_logprobs")
    | _refused("logprob_token_ids", [])
    | _refused("top_n_tokens n_probs", 0, instead="logprobs")
    | _refused("return_tokens_as_token_ids", False, instead="return_token_ids")
    | _refused("return_tokens", False, instead="return_token_ids")
    | _refused("post_sampling_probs return_progress timings_per_token decoder_input_details details", False)
    | _refused("return_hidden_states return_routed_experts return_cached_tokens_details return_prompt_text", False)
    | _refused("detokenize include_reasoning separate_reasoning stream_reasoning", True)
    | _refused("reasoning_format", "none", "auto")
    | _refused("return_full_text", False, instead="echo")
    | _refused("response_fields", [])
)
_SHARED = _HONOURED | _INERT | _CONSTRAINTS | _SAMPLING | _INPUT | _OUTPUT

_OF_CHATS = "it is a parameter of /v1/chat/completions"
_OF_TEXTS = "it is a parameter of /v1/completions"
PARAMETERS: dict[ApiKind, dict[str, Parameter]] = {
    "chat": _SHARED
    | _each(
        "honoured",
        "messages tools tool_choice documents chat_template chat_template_kwargs add_generation_prompt "
        "continue_final_message top_logprobs reasoning_effort",
    )
    | _refused("prompt", "", [], instead=_OF_TEXTS)
    | _refused("echo", False, instead=_OF_TEXTS)
    | _refused("add_special_tokens", False),  # a chat has the tokens that its template writes
    "text": _SHARED
    | _each("honoured", "prompt echo")
    | _refused("messages tools documents", [], instead=_OF_CHATS)
    | _refused("tool_choice", "none", "auto", instead=_OF_CHATS)
    | _refused("chat_template reasoning_effort add_generation_prompt", instead=_OF_CHATS)
    | _refused("chat_template_kwargs", {}, instead=_OF_CHATS)
    | _refused("continue_final_message", False, instead=_OF_CHATS)
    | _refused("top_logprobs", 0, instead="logprobs")
    | _refused("add_special_tokens", True),
}


def check_parameters(kind: ApiKind, body: dict[str, Any]) -> set[str]:
    """The names of what was accepted and is not done. Raises RefusalError unsupported, naming the parameter."""
    named: set[str] = set()
    for key, value in body.items():
        parameter = PARAMETERS[kind].get(key)
        if parameter is None:
            if value is not None:
                named.add(key_name(key))
        elif parameter.effect == "refused" and parameter.asks(value):
            raise refuse("unsupported", _no(key, parameter), param=key)
        elif parameter.effect == "named" and parameter.asks(value):
            named.add(key)
    return named


def _no(name: str, parameter: Parameter) -> str:
    if parameter.instead in (_OF_CHATS, _OF_TEXTS):
        return f"{name} is not supported here: {parameter.instead}"
    harmless = " or ".join(orjson.dumps(value).decode() for value in parameter.neutral)
    way_out = f"leave it out, or send {harmless}" if harmless else "leave it out"
    hint = f"; see {parameter.instead}" if parameter.instead else ""
    return f"{name} is not supported by this version: {way_out}{hint}"
