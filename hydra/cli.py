"""The command line: words in, settings out; results on standard output, everything else on standard error."""

import errno
import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import httpx2

from hydra.child_spec import CoordinatorSpec, FrontendSpec, WorkerSpec, from_json
from hydra.complaint import Complaint, exit_code_of
from hydra.log import say_at_end, set_up_logging
from hydra.settings import CHOICES, Settings, load_settings
from hydra.standard_streams import print_line

DEFAULT_URL = "http://127.0.0.1:8080"
FOLLOW_EVERY_S = 1.0


def refuse_foreign_hydra() -> None:
    """Another distribution that installs the import name `hydra` breaks both. Raises Complaint (exit 4)."""
    owners = metadata.packages_distributions().get("hydra", [])
    if "hydra-core" in owners:
        raise Complaint(
            "the package hydra-core is installed in this environment",
            "it has the same import name, `hydra`, and overwrites files of this one",
            "use a private virtual environment (`make up` makes one), or: pip uninstall hydra-core",
            4,
        )


def main() -> None:
    """The program. Complaints become three lines and an exit code."""
    try:
        refuse_foreign_hydra()
        cli(standalone_mode=False)
    except Complaint as complaint:
        say_at_end(str(complaint))
        sys.exit(complaint.exit_code)
    except click.ClickException as why:
        why.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hydra-actors", prog_name="hydra")
def cli() -> None:
    """One large language model over the unequal devices you own, behind the OpenAI API."""


@cli.command()
@click.argument("model", required=False)
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file (default: ./config.toml if it is there).")
@click.option("--workers", type=click.IntRange(0, 64), help="Local workers (default: one per GPU, else 2 on the CPU).")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, mps, or a list like cuda:0,cuda:1.")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.")
@click.option("--max-model-len", type=click.IntRange(min=0), help="Tokens of the longest sequence (0: what fits).")
@click.option("--http", "http_addr", help="HOST:PORT of the API (default 127.0.0.1:8080).")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Where the coordinator remembers its term.")
@click.option("--chat-template", help="A Jinja file to use in place of MODEL's own chat templates.")
@click.option("--lan", is_flag=True, help="Let workers on other machines join (needs [cluster] join_token).")
def up(
    model: str | None,
    config: Path | None,
    workers: int | None,
    device: str,
    dtype: str | None,
    max_model_len: int | None,
    http_addr: str | None,
    state_dir: Path | None,
    chat_template: str | None,
    lan: bool,
) -> None:
    """Start a cluster on this machine and serve MODEL: a directory, or org/name[@revision] of the Hugging Face Hub.

    Without MODEL it serves a tiny built-in one.
    """
    from hydra.store.demo_model import ensure_demo_model
    from hydra.up import UpWish, local_workers, run_up

    flags = {
        ("server", "http_addr"): http_addr,
        ("model", "dtype"): dtype,
        ("model", "max_model_len"): max_model_len,
        ("model", "path"): model,
        ("model", "chat_template"): chat_template,
    }
    settings = load_settings(config, flags)
    set_up_logging("parent")
    if lan and not settings.cluster.join_token:
        raise Complaint(
            "--lan needs a join token",
            "off loopback every process must show one",
            "set HYDRA_CLUSTER_JOIN_TOKEN (or [cluster] join_token) here and on every worker",
            6,
        )
    if settings.model.chat_template:
        check_chat_template(Path(settings.model.chat_template).expanduser())
    wish = UpWish(
        model_path=_model(settings.model.path or str(ensure_demo_model(settings.model.cache_path()))),
        workers=local_workers(workers, device),
        state_dir=state_dir or _state_dir(settings),
        lan=lan,
    )
    sys.exit(run_up(settings, wish, lambda url: print_line(f"ready {url}")))


def check_chat_template(file: Path) -> None:
    """Whether it makes sense is found out where templates are compiled. Raises Complaint (exit 2)."""
    try:
        if not file.is_file():
            raise FileNotFoundError(errno.ENOENT, "there is no such file")
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as why:
        fix = "give a file with a Jinja template"
        raise Complaint(f"no chat template at {file}", why.strerror or str(why), fix, 2) from why


def _model(text: str) -> str:
    """An absolute directory, or a Hub id as it was written. Raises Complaint (exit 7)."""
    from hydra.protocol.refusal import RefusalError
    from hydra.store.model_ref import parse_ref

    try:
        ref = parse_ref(text)
    except RefusalError as why:
        fix = "give a directory with config.json and safetensors files, or a Hub id"
        raise Complaint(f"no model {text!r}", str(why), fix, 7) from why
    return str(ref.absolute()) if isinstance(ref, Path) else text


def _state_dir(settings: Settings) -> Path:
    """One per HTTP address, so that two clusters of one user do not share a memory by accident."""
    address = settings.server.http_addr.replace(":", "_").replace("/", "_")
    return settings.model.cache_path().parent / "state" / address


@cli.command()
@click.option("--node-id", required=True, help="This worker's name; it survives restarts.")
@click.option("--coordinator", required=True, help="tcp://HOST:5555 of the cluster to join.")
@click.option("--broadcast", help="tcp://HOST:5557 (default: the coordinator's host, port + 2).")
@click.option("--device", default="auto", show_default=True, help="cpu, mps or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(CHOICES["model", "dtype"]),
    default="auto",
    show_default=True,
    help="Restricts what this worker offers.",
)
@click.option("--pipeline-port", type=click.IntRange(0, 65535), default=6000, show_default=True)
@click.option("--store-port", type=click.IntRange(0, 65535), default=0, help="Where it lends its layers (any).")
@click.option("--bind", default="127.0.0.1", show_default=True, help="Where to listen for steps and for other workers.")
@click.option("--advertise", default="", help="The host under which others reach this worker (default: as bound).")
@click.option("--memory-gb", type=click.FloatRange(0, 1e6), default=0.0, help="Caps what it offers (default: all).")
@click.option("--threads", type=click.IntRange(0, 4096), default=0, help="Compute threads on the CPU.")
def worker(
    node_id: str,
    coordinator: str,
    broadcast: str | None,
    device: str,
    dtype: str,
    pipeline_port: int,
    store_port: int,
    bind: str,
    advertise: str,
    memory_gb: float,
    threads: int,
) -> None:
    """Add this machine's device to a cluster."""
    from hydra.up import local_workers, require_token, run_worker_parent, settle_addr

    set_up_logging("parent", node_id)
    settings = load_settings(None, {})
    require_token("--bind", f"tcp://{bind}:{pipeline_port}", settings.cluster.join_token)
    host, _, port = coordinator.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdigit():
        raise Complaint(f"{coordinator!r} is no address", "it is tcp://HOST:PORT", "for example tcp://10.0.0.5:5555", 2)
    wish = local_workers(1, device)[0]
    held = {
        option: settle_addr(option, f"tcp://{bind}:{number}", option)
        for option, number in {"--pipeline-port": pipeline_port, "--store-port": store_port}.items()
    }  # until this function returns
    any_port = f"tcp://{bind}:0"  # each life of the worker takes its own
    pipeline_addr, store_addr = (addr for addr, _ in held.values())
    spec = WorkerSpec(
        node_id=node_id,
        router_addr=f"tcp://{host}:{port}",
        broadcast_addr=broadcast or f"tcp://{host}:{int(port) + 2}",
        cache_dir=str(settings.model.cache_path()),
        max_cache_bytes=settings.model.max_cache_bytes(),
        pipeline_bind=pipeline_addr if pipeline_port else any_port,
        store_bind=store_addr if store_port else any_port,
        advertise_host=advertise or _reachable_host(bind, host, int(port)),
        device=wish.device,
        dtype=dtype,
        threads=threads or wish.threads,
        memory_bytes=int(memory_gb * 1e9) or wish.memory_bytes,
        high_water_mark=settings.zmq.high_water_mark,
    )
    sys.exit(run_worker_parent(spec, settings))


@cli.command()
@click.argument("model")
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file (default: ./config.toml if it is there).")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a line.")
def pull(model: str, config: Path | None, as_json: bool) -> None:
    """Fetch MODEL, org/name[@revision] of the Hub, into this machine's cache. May be interrupted and run again."""
    from hydra import pull as pulling

    set_up_logging("pull")
    told = pulling.pull(model, load_settings(config, {}), lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(told))
        return
    click.echo(f"{told['model']} is in the cache: {told['bytes_total'] / 1e6:.1f} MB of weights in {told['weights']}")


def _reachable_host(bind: str, coordinator_host: str, port: int) -> str:
    """As bound, or (bound to everything) this machine's address on the way to the coordinator."""
    import socket

    if bind not in ("*", "0.0.0.0"):
        return bind
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((coordinator_host, port))
        return str(probe.getsockname()[0])


# ---------------------------------------------------------------- tools that talk to a running cluster


def _ask(method: str, url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    try:
        answer = httpx2.request(method, url.rstrip("/") + path, json=body, timeout=3600.0)
    except httpx2.TransportError as why:
        raise Complaint(f"cannot reach {url}", str(why), "is it up? choose another with --url", 5) from why
    content = answer.json()
    if answer.is_success:
        return content
    error = content.get("error", {})
    codes = {401: 6, 403: 6, 404: 7}
    exit_code = {"does_not_fit": 3, "source_unreachable": 4}.get(error.get("code"), codes.get(answer.status_code, 1))
    raise Complaint(str(error.get("message")), f"the cluster answered {answer.status_code}", "see above", exit_code)


def _talks(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")(command)
    return click.option("--url", default=DEFAULT_URL, show_default=True, envvar="HYDRA_URL")(command)


@cli.command()
@_talks
def status(url: str, as_json: bool) -> None:
    """Nodes, layers and models."""
    told = _ask("GET", url, "/api/cluster/status")
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{'NODE':<16}{'STATE':<10}{'DEVICE':<10}{'MEMORY':>10}  LAYERS")
    for node in told["nodes"]:
        layers = ", ".join(f"{s['model_id']} {s['first_layer']}-{s['end_layer'] - 1}" for s in node["stages"])
        memory = f"{node['memory_total_bytes'] / 1e9:.1f} GB"
        click.echo(f"{node['node_id']:<16}{node['state']:<10}{node['device']:<10}{memory:>10}  {layers or '(spare)'}")


@cli.command()
@_talks
def ps(url: str, as_json: bool) -> None:
    """Models and what they are doing."""
    models = _ask("GET", url, "/api/cluster/status")["models"]
    if as_json:
        click.echo(json.dumps(models, indent=2))
        return
    click.echo(f"{'MODEL':<28}{'STATE':<12}{'LAYERS':>7}{'KV FREE':>16}{'RUN/WAIT':>10}")
    for model in models:
        kv = f"{model['kv_blocks_free']}/{model['kv_blocks_total']}"
        work = f"{model['running']}/{model['waiting']}"
        click.echo(f"{model['model_id']:<28}{model['state']:<12}{model['total_layers']:>7}{kv:>16}{work:>10}")


@cli.command()
@click.argument("model_path")
@click.option("--id", "model_id")
@click.option("--dtype")
@_talks
def load(model_path: str, model_id: str | None, dtype: str | None, url: str, as_json: bool) -> None:
    """Load another model: a directory, or org/name[@revision] of the Hub. Shows how far each node is."""
    body = {"model_path": model_path, "model_id": model_id, "dtype": dtype, "wait": False}
    begun = _ask("POST", url, "/api/models/load", {key: value for key, value in body.items() if value is not None})
    told = _follow(url, begun["job"])
    if told["error"] is not None:
        fix = "what was fetched is kept; mend it and load again"
        raise Complaint(told["error"]["message"], f"the load {told['state']}", fix, exit_code_of(told["error"]["code"]))
    shown = {"model_id": told["model_id"], "state": told["state"]}
    click.echo(json.dumps(shown) if as_json else f"{told['model_id']} {told['state']}")


def _follow(url: str, job: str) -> Any:
    """The job once it is over; until then a line of progress whenever there is something new to say."""
    shown = ""
    while True:
        told = _ask("GET", url, f"/api/models/jobs/{job}")
        if told["state"] != "loading":
            return told
        line = "  ".join(
            f"{node['node_id']} {node['state']} {node['bytes_done'] / 1e6:.0f}/{node['bytes_total'] / 1e6:.0f} MB"
            for node in told["nodes"]
        )
        if line != shown:
            click.echo(line, err=True)
            shown = line
        time.sleep(FOLLOW_EVERY_S)


@cli.command()
@click.argument("model_id")
@_talks
def unload(model_id: str, url: str, as_json: bool) -> None:
    """Forget a model."""
    told = _ask("POST", url, "/api/models/unload", {"model_id": model_id})
    click.echo(json.dumps(told) if as_json else f"{told['model_id']} {told['state']}")


@cli.command()
@click.argument("model")
@click.option("--nodes", required=True, help="Each node's memory in GB, in order: 11,32,32.")
@click.option("--dtype", help="auto (as stored), float32, bfloat16 or float16.")
@click.option("--max-model-len", type=click.IntRange(min=0), help="Tokens of the longest sequence (0: what fits).")
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file (default: ./config.toml if it is there).")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table, in bytes.")
def plan(
    model: str, nodes: str, dtype: str | None, max_model_len: int | None, config: Path | None, as_json: bool
) -> None:
    """Show how MODEL would be split over nodes of so much memory. Exit 0 when it fits, 3 when it does not."""
    from hydra import plan_command

    set_up_logging("plan")  # warnings about the model are no part of the answer
    said = plan_command.answer(plan_command.ask(model, nodes, dtype, max_model_len, load_settings(config, {})))
    click.echo(json.dumps(said, indent=2) if as_json else plan_command.as_text(said))
    sys.exit(0 if said["fits"] else 3)


@cli.command()
@click.argument("budgets", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@click.option("--device", default="cpu", show_default=True, help="Of P1, R and L: cpu, or a list like cuda:0,cuda:1.")
@click.option("--quick", is_flag=True, help="Fewer rounds: minutes become one, and the figures noisier.")
def bench(budgets: tuple[str, ...], as_json: bool, device: str, quick: bool) -> None:
    """Measure BUDGETS (P1, P2, P4, R, L = load; default: all) as ratios. Exit 0 when all are met, 1 when one is not."""
    from hydra.bench import command

    set_up_logging("bench")
    names = command.wanted_names(budgets)
    command.check_device(device)
    found = command.measure(names, device=device, quick=quick, say=lambda line: click.echo(line, err=True))
    click.echo(json.dumps(command.as_json(found), indent=2) if as_json else command.as_table(found))
    sys.exit(0 if command.all_hold(found) else 1)


# ---------------------------------------------------------------- children, started by a parent only


def _child(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--spec", required=True)(command)
    return click.option("--lifeline", required=True)(command)


def _fds(lifeline: str) -> tuple[int, int]:
    read_fd, _, write_fd = lifeline.partition(",")
    return int(read_fd), int(write_fd)


@cli.command("_coordinator", hidden=True)
@_child
def coordinator_child(spec: str, lifeline: str) -> None:
    from hydra.roles import coordinator_main

    set_up_logging("coordinator")
    coordinator_main(from_json(spec, CoordinatorSpec), _fds(lifeline))


@cli.command("_worker", hidden=True)
@_child
def worker_child(spec: str, lifeline: str) -> None:
    from hydra.roles import worker_main

    worker_spec = from_json(spec, WorkerSpec)
    set_up_logging("worker", worker_spec.node_id)
    worker_main(worker_spec, _fds(lifeline))


@cli.command("_frontend", hidden=True)
@click.option("--been-ready", type=click.BOOL, default=False)
@_child
def frontend_child(spec: str, lifeline: str, been_ready: bool) -> None:
    from hydra.roles import frontend_main

    frontend_spec = from_json(spec, FrontendSpec)
    set_up_logging("frontend", frontend_spec.node_id)
    frontend_main(frontend_spec, _fds(lifeline), been_ready=been_ready)
