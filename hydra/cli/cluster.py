"""The commands that ask a running cluster: what it is doing, load this, forget that."""

import json
import time
from collections.abc import Callable
from typing import Any

import click

from hydra.cli.cluster_client import ask_cluster
from hydra.complaint import Complaint, exit_code_of
from hydra.settings import CHOICES

DEFAULT_URL = "http://127.0.0.1:8080"
FOLLOW_EVERY_S = 1.0


def _talks(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")(command)
    return click.option("--url", default=DEFAULT_URL, show_default=True, envvar="HYDRA_URL")(command)


@click.command("status")
@_talks
def status_command(url: str, as_json: bool) -> None:
    """Nodes, layers and models."""
    answer = ask_cluster("GET", url, "/api/cluster/status")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(f"{'NODE':<16}{'STATE':<10}{'DEVICE':<10}{'MEMORY':>10}  LAYERS")
    for node in answer["nodes"]:
        layers = ", ".join(f"{s['model_id']} {s['first_layer']}-{s['end_layer'] - 1}" for s in node["stages"])
        memory = f"{node['memory_total_bytes'] / 1e9:.1f} GB"
        click.echo(f"{node['node_id']:<16}{node['state']:<10}{node['device']:<10}{memory:>10}  {layers or '(spare)'}")


@click.command("ps")
@_talks
def ps_command(url: str, as_json: bool) -> None:
    """Models and what they are doing."""
    models = ask_cluster("GET", url, "/api/cluster/status")["models"]
    if as_json:
        click.echo(json.dumps(models, indent=2))
        return
    click.echo(f"{'MODEL':<28}{'STATE':<12}{'LAYERS':>7}{'KV FREE':>16}{'RUN/WAIT':>10}")
    for model in models:
        kv = f"{model['kv_blocks_free']}/{model['kv_blocks_total']}"
        work = f"{model['running']}/{model['waiting']}"
        click.echo(f"{model['model_id']:<28}{_state(model):<12}{model['total_layers']:>7}{kv:>16}{work:>10}")


def _state(model: dict[str, Any]) -> str:
    """With how many of its replicas serve, where there are several."""
    several = f" {model['replicas_ready']}/{model['replicas']}" if model.get("replicas", 1) > 1 else ""
    return f"{model['state']}{several}"


@click.command("load")
@click.argument("model_path", metavar="MODEL")
@click.option("--id", "model_id")
@click.option("--dtype", type=click.Choice(CHOICES["model", "dtype"]))
@click.option("--quantize", type=click.Choice(CHOICES["model", "quantize"]), help="As of up.")
@click.option("--replicas", type=click.IntRange(min=1), help="Copies on workers of their own each.")
@_talks
def load_command(
    model_path: str,
    model_id: str | None,
    dtype: str | None,
    quantize: str | None,
    replicas: int | None,
    url: str,
    as_json: bool,
) -> None:
    """Load another model: a directory, or org/name[@revision] of the Hub. Shows how far each node is.

    Ctrl-C only stops the showing; what to type to call the load off is said then.
    """
    from hydra.cli.named_model import NamedModel

    model = NamedModel.read(model_path)
    wishes = {"dtype": dtype, "quantize": quantize, "replicas": replicas}
    body = {"model_path": model.sent, "model_id": model_id, **wishes, "wait": False}
    job = None
    try:
        job = ask_cluster(
            "POST", url, "/api/models/load", {key: value for key, value in body.items() if value is not None}
        )
        loaded = _follow(url, job["job"])
    except KeyboardInterrupt:
        click.echo(_goes_on(url, job), err=True)
        raise click.Abort from None
    if loaded["error"] is not None:
        code, message = loaded["error"]["code"], loaded["error"]["message"]
        cause, fix = f"the load {loaded['state']}", "what was fetched is kept; mend it and load again"
        if code == "model_not_found" and model.is_here:
            message, cause, fix = model.only_here(url)
        raise Complaint(message, cause, fix, exit_code_of(code))
    shown = {"model_id": loaded["model_id"], "state": loaded["state"]}
    click.echo(json.dumps(shown) if as_json else f"{loaded['model_id']} {loaded['state']}")


def _goes_on(url: str, job: dict[str, Any] | None) -> str:
    """What becomes of a load whose follower leaves."""
    jobs = f"{url.rstrip('/')}/api/models/jobs"
    if job is None:
        return f"whether the cluster has begun to load is not known; {jobs} lists what it is loading"
    return f"the load goes on in the cluster; to call it off: curl -X DELETE {jobs}/{job['job']}"


def _follow(url: str, job: str) -> Any:
    """The job once it is over; until then a line of progress whenever there is something new to say."""
    shown = ""
    while True:
        answer = ask_cluster("GET", url, f"/api/models/jobs/{job}")
        if answer["state"] != "loading":
            return answer
        line = "  ".join(
            f"{node['node_id']} {node['state']} {node['bytes_done'] / 1e6:.0f}/{node['bytes_total'] / 1e6:.0f} MB"
            for node in answer["nodes"]
        )
        if line != shown:
            click.echo(line, err=True)
            shown = line
        time.sleep(FOLLOW_EVERY_S)


@click.command("unload")
@click.argument("model_id")
@_talks
def unload_command(model_id: str, url: str, as_json: bool) -> None:
    """Forget a model."""
    answer = ask_cluster("POST", url, "/api/models/unload", {"model_id": model_id})
    click.echo(json.dumps(answer) if as_json else f"{answer['model_id']} {answer['state']}")
