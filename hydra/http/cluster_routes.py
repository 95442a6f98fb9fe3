"""The routes for people and tools that run the cluster: health, readiness, metrics, status, models and load jobs."""

from typing import Any, get_args

import attrs
from quart import Response, request
from quart_trio import QuartTrio

from hydra.http.api import Api, json_response
from hydra.http.failures import body_of
from hydra.http.fields import Fields
from hydra.http.openai_request import parse_json
from hydra.protocol.limits import NAME_MAX, PATH_MAX, REPLICAS_MAX
from hydra.protocol.messages.models import JobStatus, ModelReply, Sample, StatusReply
from hydra.protocol.model.model_spec import Quantize
from hydra.protocol.refusal import RefusalError, refuse

LAYERS_MAX = 1 << 20


def add_cluster_routes(app: QuartTrio, api: Api) -> None:
    @app.get("/health")
    async def health() -> Response:
        return json_response({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        if api.shutdown.begun.is_set():
            raise refuse("shutting_down", "the server is stopping", retry_after_s=5.0)
        await api.readiness.check()
        return json_response({"ready": True})

    @app.get("/metrics")
    async def metrics() -> Response:
        text = prometheus((await api.cluster.status()).samples)
        return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/cluster/status")
    async def status() -> Response:
        return json_response(_status(await api.cluster.status()))

    @app.post("/api/cluster/rebalance")
    async def rebalance() -> Response:
        return _told(await api.cluster.rebalance())

    @app.post("/api/models/load")
    async def load() -> Response:
        body = await api.encoders.read(await request.get_data(), parse_json)
        reply = await api.cluster.load_model(**_load_request(body))
        if reply.refusal is None and reply.model_id:
            if reply.job:
                api.trials.begin(reply.job, reply.model_id)
            else:
                await api.trials.prove(reply.model_id)
        return _told(reply)

    @app.get("/api/models/jobs")
    async def jobs() -> Response:
        return json_response({"jobs": [_job(job) for job in await api.trials.verdicts(await api.cluster.jobs(None))]})

    @app.get("/api/models/jobs/<job_id>")
    async def job(job_id: str) -> Response:
        return json_response(_job((await api.trials.verdicts(await api.cluster.jobs(_job_name(job_id))))[0]))

    @app.delete("/api/models/jobs/<job_id>")
    async def cancel(job_id: str) -> Response:
        return json_response(_job((await api.trials.verdicts(await api.cluster.cancel_job(_job_name(job_id))))[0]))

    @app.post("/api/models/unload")
    async def unload() -> Response:
        body = await api.encoders.read(await request.get_data(), parse_json)
        reply = await api.cluster.unload_model(Fields(body).text("model_id", NAME_MAX))
        api.tokenizers.keep(await api.cluster.models())
        return _told(reply)


def _load_request(body: dict[str, Any]) -> dict[str, Any]:
    """What it may say fits one message of the command lane."""
    fields = Fields(body)
    return {
        "model_path": fields.text("model_path", PATH_MAX),
        "model_id": fields.text_or_none("model_id", NAME_MAX),
        "total_layers": fields.integer("total_layers", 0, 1, LAYERS_MAX) or None,
        "dtype": fields.text_or_none("dtype", NAME_MAX),
        "wait": fields.flag("wait", default=True),
        "quantize": fields.one_of("quantize", "none", get_args(Quantize)),
        "replicas": fields.integer("replicas", 1, 1, REPLICAS_MAX),
    }


def _job_name(job: str) -> str:
    if len(job) > NAME_MAX:
        raise refuse("job_not_found", f"no load job has a name of more than {NAME_MAX} characters")
    return job


def _told(reply: ModelReply) -> Response:
    if reply.refusal is not None:
        raise RefusalError(reply.refusal)
    content = {"model_id": reply.model_id, "state": reply.state}
    if reply.state != "loading":
        return json_response(content)
    return json_response(content | {"job": reply.job}, 202)


def _job(job: JobStatus) -> dict[str, Any]:
    """Bytes are sums over the nodes of the phase they are in; each node's own follow."""
    return {
        "job": job.job,
        "model_id": job.model_id,
        "model_path": job.model_path,
        "state": job.state,
        "bytes_done": sum(node.bytes_done for node in job.nodes),
        "bytes_total": sum(node.bytes_total for node in job.nodes),
        "nodes": [attrs.asdict(node) for node in job.nodes],
        "error": None if job.refusal is None else body_of(job.refusal)["error"],
    }


def _status(reply: StatusReply) -> dict[str, Any]:
    content = attrs.asdict(reply, filter=lambda field, _: field.name not in ("ask", "samples"))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}


def prometheus(samples: tuple[Sample, ...]) -> str:
    """The text format; names and labels are ours, so nothing needs escaping."""
    lines: list[str] = []
    described: set[str] = set()
    for sample in samples:
        if sample.name not in described:
            described.add(sample.name)
            lines += [f"# HELP {sample.name} {sample.help}", f"# TYPE {sample.name} {sample.kind}"]
        if sample.kind == "histogram":
            lines += _histogram(sample)
        else:
            lines.append(f"{sample.name}{_labels(sample.labels)} {sample.value:g}")
    return "\n".join(lines) + "\n"


def _histogram(sample: Sample) -> list[str]:
    buckets = [*((f"{bound:g}", count) for bound, count in sample.buckets), ("+Inf", sample.count)]
    lines = [f"{sample.name}_bucket{_labels((*sample.labels, ('le', bound)))} {count}" for bound, count in buckets]
    labels = _labels(sample.labels)
    return [*lines, f"{sample.name}_sum{labels} {sample.value:g}", f"{sample.name}_count{labels} {sample.count}"]


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    return "{" + ",".join(f'{key}="{value}"' for key, value in labels) + "}" if labels else ""
