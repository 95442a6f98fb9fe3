"""`hydra plan`: what a split would be, from a model's headers and nodes that need not exist. Nothing is loaded.

The arithmetic is the planner's own (actors.split); this file only asks it and says what it answered, in bytes for
programs and in GB (10^9 bytes) for people.
"""

import os
from collections.abc import Sequence
from typing import Any, get_args

import attrs

from hydra.actors.planning.candidates import Candidate
from hydra.actors.planning.plan_settings import PlanSettings
from hydra.actors.planning.split import LayerShare, SplitLimits, check_max_model_len, reserve_of, split_vram
from hydra.complaint import Complaint, exit_code_of
from hydra.protocol.ids import NodeId
from hydra.protocol.model.dtype import Dtype
from hydra.protocol.model.model_spec import Described, ModelSpec
from hydra.protocol.model.part_size import total_size
from hydra.protocol.model.quantised import quantised
from hydra.protocol.refusal import RefusalError
from hydra.protocol.units import GIGABYTE
from hydra.settings import Settings, cache_path
from hydra.store.hub.hub_login import with_login
from hydra.store.models.library import LocalLibrary
from hydra.store.models.model_ref import HubAccess, HubRef, parse_ref


@attrs.frozen(kw_only=True)
class PlanRequest:
    """What the person wants to know. `max_model_len` 0: as much as fits."""

    described: Described
    candidates: tuple[Candidate, ...]
    limits: SplitLimits


def plan_request(
    model: str, nodes: str, dtype: str | None, max_model_len: int | None, settings: Settings
) -> PlanRequest:
    """Describes the model and reads the words. Raises Complaint: 2 for the words, 4, 6 or 7 for the model."""
    candidates = _seats(nodes)
    try:
        described = _describe(model, settings)
    except RefusalError as error:
        fix = "give a directory with config.json and safetensors files, a GGUF file, or a Hub id"
        raise Complaint(
            error.refusal.message, "the model cannot be planned for", fix, exit_code_of(error.refusal.code)
        ) from error
    model_settings = settings.model
    if max_model_len is not None:
        model_settings = attrs.evolve(model_settings, max_model_len=max_model_len)
    try:
        described = quantised(described, model_settings.quantize)
        check_max_model_len(described.spec, model_settings.max_model_len)
    except RefusalError as error:
        setting = error.refusal.param or "max_model_len"
        fix = f"see above; it is --{setting.replace('_', '-')} here, and [model] {setting} in the configuration"
        code = exit_code_of(error.refusal.code, error.refusal.param)
        raise Complaint(error.refusal.message, "the model cannot be planned for", fix, code) from error
    plan_settings = PlanSettings(cluster=settings.cluster, engine=settings.engine, model=model_settings)
    limits = SplitLimits.of(plan_settings, _dtype(dtype or model_settings.dtype, described.spec))
    return PlanRequest(described=described, candidates=candidates, limits=limits)


def _describe(model: str, settings: Settings) -> Described:
    """Of a Hub model only the small files and the headers of its weights are fetched, into the cache."""
    if not isinstance(parse_ref(model), HubRef):
        return LocalLibrary(cache_dir=cache_path(settings.model)).describe(model)
    from hydra.store.hub.hub import HubClient
    from hydra.store.hub.hub_library import HubLibrary

    token = {"HF_TOKEN": settings.model.hf_token} if settings.model.hf_token else {}
    access = with_login(HubAccess.of({**os.environ, **token}))
    return HubLibrary(HubClient(access, cache_path(settings.model))).describe(model)


def _seats(nodes: str) -> tuple[Candidate, ...]:
    candidates: list[Candidate] = []
    for number, text in enumerate(nodes.split(",")):
        try:
            memory_bytes = int(float(text) * GIGABYTE)
        except (ValueError, OverflowError):
            memory_bytes = 0
        if memory_bytes <= 0:
            fix = "give each node's memory in GB, for example --nodes 11,32,32"
            raise Complaint(f"--nodes {nodes!r} makes no sense", f"{text!r} is no amount of memory", fix, 2)
        candidates.append(Candidate(node=NodeId(f"n{number}"), memory_bytes=memory_bytes))
    return tuple(candidates)


def _dtype(wanted: str, spec: ModelSpec) -> Dtype:
    """`auto` is the stored dtype here: which dtypes the nodes are at home in, only they could say."""
    known: dict[str, Dtype] = {"auto": spec.stored_dtype, **{dtype: dtype for dtype in get_args(Dtype)}}
    if wanted not in known:
        raise Complaint(f"there is no dtype {wanted!r}", "nobody computes in it", f"choose from {', '.join(known)}", 2)
    return known[wanted]


def plan_answer(request: PlanRequest) -> dict[str, Any]:
    """The split as one JSON object; `fits` false comes with the `reason` and without a split."""
    spec, limits = request.described.spec, request.limits
    head = total_size((spec.head_size, spec.embedding_size)) if spec.tied else spec.head_size
    plan: dict[str, Any] = {
        "model_path": request.described.model_path,
        "architecture": spec.architecture,
        "total_layers": spec.n_layers,
        "stored_dtype": spec.stored_dtype,
        "quantize": spec.quantize,
        "dtype": limits.dtype,
        "weight_bytes": spec.slice_bytes(0, spec.n_layers, limits.dtype),
        "layer_bytes": [size.memory_bytes(limits.dtype) for size in spec.layer_sizes],
        "embedding_bytes": spec.embedding_size.memory_bytes(limits.dtype),
        "head_bytes": head.memory_bytes(limits.dtype),
        "tied": spec.tied,
        "kv_bytes_per_token": spec.cache_size(0, spec.n_layers, limits.dtype).token_bytes,
    }
    try:
        shares = split_vram(spec, request.candidates, limits)
    except RefusalError as error:
        return {**plan, "fits": False, "reason": error.refusal.message, "nodes": []}
    kv_tokens = _kv_tokens(spec, shares, limits)
    limit = limits.max_model_len or spec.max_positions
    nodes = [
        _node(candidate, {share.node: share for share in shares}.get(candidate.node), limits)
        for candidate in request.candidates
    ]
    return {**plan, "fits": True, "kv_tokens": kv_tokens, "max_model_len": min(limit, kv_tokens), "nodes": nodes}


def _kv_tokens(spec: ModelSpec, shares: Sequence[LayerShare], limits: SplitLimits) -> int:
    """Tokens of all sequences together: the least that any node has whole blocks for."""
    blocks = (
        spec.cache_size(share.first_layer, share.end_layer, limits.dtype).blocks_in(
            share.kv_memory_bytes, limits.block_size
        )
        for share in shares
    )
    return min(blocks) * limits.block_size


def _node(candidate: Candidate, share: LayerShare | None, limits: SplitLimits) -> dict[str, Any]:
    """`free_bytes` is what weights, KV and reserve leave: room for activations and for whatever was not foreseen."""
    reserve_bytes = reserve_of(candidate.memory_bytes, limits.reserved_vram_bytes)
    used = (share.weight_bytes, share.kv_memory_bytes) if share else (0, 0)
    return {
        "node_id": candidate.node,
        "memory_bytes": candidate.memory_bytes,
        "first_layer": share.first_layer if share else None,
        "end_layer": share.end_layer if share else None,
        "weight_bytes": used[0],
        "kv_bytes": used[1],
        "reserve_bytes": reserve_bytes,
        "free_bytes": candidate.memory_bytes - reserve_bytes - sum(used),
    }


def plan_text(plan: dict[str, Any]) -> str:
    """The answer for people. Raises Complaint (exit 3) with the figures when the model does not fit."""
    layers = sorted({layer / GIGABYTE for layer in plan["layer_bytes"]})
    span = f"{layers[0]:.3f}" if len(layers) == 1 else f"{layers[0]:.3f} to {layers[-1]:.3f}"
    head = f"{plan['head_bytes'] / GIGABYTE:.3f} GB"
    made = "" if plan["quantize"] == "none" else f"made {plan['quantize']} while loaded, "
    lines = [
        f"{plan['architecture']}, {plan['total_layers']} layers, stored as {plan['stored_dtype']}, {made}computed in "
        f"{plan['dtype']}: {plan['weight_bytes'] / GIGABYTE:.3f} GB of weights",
        f"each layer {span} GB, embedding {plan['embedding_bytes'] / GIGABYTE:.3f} GB, "
        f"{'tied ' if plan['tied'] else ''}head {head}, KV {plan['kv_bytes_per_token']} bytes per token",
    ]
    if not plan["fits"]:
        what, *figures = plan["reason"].split("; ")
        fix = "add memory or nodes, or lower --max-model-len or the dtype's size"
        raise Complaint(f"does not fit: {what}", "; ".join(figures), fix, 3)
    lines.append(f"{'NODE':<8}{'MEMORY':>10}  {'LAYERS':<9}{'WEIGHTS':>10}{'KV':>10}{'RESERVE':>10}{'FREE':>10}  (GB)")
    lines += [_line(node) for node in plan["nodes"]]
    lines.append(f"fits: sequences of up to {plan['max_model_len']} tokens, {plan['kv_tokens']} tokens at once")
    return "\n".join(lines)


def _line(node: dict[str, Any]) -> str:
    layers = "(spare)" if node["end_layer"] is None else f"{node['first_layer']}-{node['end_layer'] - 1}"
    parts = [node[key] / GIGABYTE for key in ("weight_bytes", "kv_bytes", "reserve_bytes", "free_bytes")]
    figures = "".join(f"{part:>10.3f}" for part in parts)
    return f"{node['node_id']:<8}{node['memory_bytes'] / GIGABYTE:>10.3f}  {layers:<9}{figures}"
