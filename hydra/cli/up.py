"""The command that starts a cluster. Everything that can be known beforehand is checked before a child is started."""

import errno
import sys
from pathlib import Path

import attrs
import click
import structlog

from hydra.complaint import Complaint
from hydra.log.set_up import set_up_logging
from hydra.log.standard_streams import print_line
from hydra.processes.port_range import PortRange
from hydra.protocol.settings.model import ModelSettings
from hydra.protocol.settings.server import ServerSettings
from hydra.settings import CHOICES, Settings, expanded, load_settings, with_paths

log = structlog.get_logger()


@click.command("up")
@click.argument("model", required=False)
@click.option(
    "--built-in",
    type=click.Choice(CHOICES["model", "built_in"]),
    help="Without MODEL: SmolLM2 out of its package, the cache or, after a question, the Hub (auto); fetch it from the "
    "Hub without a question (hub); random weights (random).",
)
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file (default: ./config.toml if it is there).")
@click.option("--workers", type=click.IntRange(0, 64), help="Local workers (default: one per GPU, else 2 on the CPU).")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, mps, or a list like cuda:0,cuda:1.")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.")
@click.option(
    "--quantize",
    type=click.Choice(CHOICES["model", "quantize"]),
    help="Make a model of full precision one of 8 or 4 bits while it is loaded.",
)
@click.option("--replicas", type=click.IntRange(1, 64), help="Deployments of MODEL, on workers of their own each.")
@click.option("--max-model-len", type=click.IntRange(min=0), help="Tokens of the longest sequence (0: what fits).")
@click.option("--http", "http_addr", help="HOST:PORT of the API (default 127.0.0.1:8080).")
@click.option("--ports", "ports_text", help="FIRST or FIRST-LAST: the ports of all lanes, for a second cluster here.")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Where the coordinator remembers its term.")
@click.option("--chat-template", help="A Jinja file to use in place of MODEL's own chat templates.")
@click.option("--lan", is_flag=True, help="Let workers on other machines join (needs [cluster] join_token).")
def up_command(
    model: str | None,
    built_in: str | None,
    config: Path | None,
    workers: int | None,
    device: str,
    dtype: str | None,
    quantize: str | None,
    max_model_len: int | None,
    replicas: int | None,
    http_addr: str | None,
    ports_text: str | None,
    state_dir: Path | None,
    chat_template: str | None,
    lan: bool,
) -> None:
    """Start a cluster on this machine and serve MODEL: a directory or a GGUF file, or of the Hugging Face Hub
    org/name[@revision], or one of its GGUF files: org/name:[FOLDER/]FILE.gguf or
    org/name:Q4_K_M.

    Without MODEL it serves a small one that answers, SmolLM2-135M-Instruct, as far as this machine has it.
    """
    from hydra.processes.local_workers import local_workers
    from hydra.processes.machine_facts import MachineFacts
    from hydra.processes.preflight import check_model, check_writable

    set_up_logging("parent")
    flags = {
        ("server", "http_addr"): http_addr,
        ("model", "dtype"): dtype,
        ("model", "quantize"): quantize,
        ("model", "max_model_len"): max_model_len,
        ("model", "replicas"): replicas,
        ("model", "path"): model,
        ("model", "built_in"): built_in,
        ("model", "chat_template"): chat_template,
    }
    settings = load_settings(config, flags)
    ports = None if ports_text is None else PortRange.parse(ports_text)
    warn_of_open_http(settings.server.http_addr)
    check_lan(settings, lan=lan)
    if built_in is not None and settings.model.path:
        cause = f"the model is named: {settings.model.path}"
        raise Complaint("--built-in says what is served without MODEL", cause, "leave one of them out", 2)
    if settings.model.chat_template:
        check_chat_template(expanded("chat_template", settings.model.chat_template))
    settings = with_paths(settings)
    chosen_workers = local_workers(workers, device, MachineFacts.look())
    state = state_dir or state_dir_of(settings, ports)
    cache_dir = Path(settings.model.cache_dir)
    check_writable(cache_dir, "[model] cache_dir")
    check_writable(state, "--state-dir")
    from hydra.processes.up import UpOptions, run_up  # numpy, zmq and trio are for those who have come so far

    settings = attrs.evolve(settings, model=with_model(settings.model))
    check_model(settings.model.path, settings.model.max_model_len, cache_dir)
    options = UpOptions(
        workers=chosen_workers,
        state_dir=state,
        lan=lan,
        ports=ports,
        any_http=ports is not None and http_addr is None and has_usual_http(settings),
    )
    sys.exit(run_up(settings, options, lambda url: print_line(f"ready {url}")))


def check_lan(settings: Settings, *, lan: bool) -> None:
    """Raises Complaint (exit 6)."""
    if lan and not settings.cluster.join_token:
        raise Complaint(
            "--lan needs a join token",
            "off loopback every process must show one",
            "set HYDRA_CLUSTER_JOIN_TOKEN (or [cluster] join_token) here and on every worker",
            6,
        )


def with_model(model: ModelSettings) -> ModelSettings:
    """With the path of what is served, and the name of a built-in one if no other is wished for. Raises Complaint."""
    from hydra.cli.built_in_model import built_in_model

    if model.path:
        return attrs.evolve(model, path=absolute_model(model.path))
    built_in = built_in_model(model)
    return attrs.evolve(model, path=absolute_model(built_in.path), id=model.id or built_in.model_id)


def warn_of_open_http(addr: str) -> None:
    """Raises Complaint (exit 2) for what is no address."""
    from hydra.processes.listening import parse_http
    from hydra.protocol.loopback import is_loopback

    if not is_loopback(parse_http(addr)[0]):
        log.warning(
            "the API can be reached from other machines, and asks nobody for a key",
            http=addr,
            risk="whoever reaches this port can use the model, read the status, and load and unload models",
            fix="keep it on a network you trust, or listen on 127.0.0.1 behind a proxy that authenticates",
        )


def check_chat_template(file: Path) -> None:
    """Whether it makes sense is found out where templates are compiled. Raises Complaint (exit 2)."""
    try:
        if not file.is_file():
            raise FileNotFoundError(errno.ENOENT, "there is no such file")
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as error:
        fix = "give a file with a Jinja template"
        raise Complaint(f"no chat template at {file}", error.strerror or str(error), fix, 2) from error


def absolute_model(text: str) -> str:
    """An absolute path, or a Hub id as it was written. Raises Complaint (exit 7)."""
    from hydra.protocol.refusal import RefusalError
    from hydra.store.models.model_ref import parse_ref

    try:
        ref = parse_ref(text)
    except RefusalError as error:
        fix = "give a directory with config.json and safetensors files, a GGUF file, or a Hub id"
        raise Complaint(f"no model {text!r}", str(error), fix, 7) from error
    return str(ref.absolute()) if isinstance(ref, Path) else text


def has_usual_http(settings: Settings) -> bool:
    return settings.server.http_addr == ServerSettings().http_addr


def state_dir_of(settings: Settings, ports: PortRange | None) -> Path:
    """One per HTTP address, or per row of ports, so that two clusters of one user do not share a memory by accident."""
    if ports is not None and has_usual_http(settings):
        name = f"ports_{ports.first}"
    else:
        name = settings.server.http_addr.replace(":", "_").replace("/", "_")
    return Path(settings.model.cache_dir).parent / "state" / name
