"""The commands about a model that need no cluster: fetch it, and how it would be split."""

import json
import sys
from pathlib import Path

import click

from hydra.log.set_up import set_up_logging
from hydra.settings import CHOICES, load_settings


@click.command("pull")
@click.argument("model")
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file (default: ./config.toml if it is there).")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a line.")
def pull_command(model: str, config: Path | None, as_json: bool) -> None:
    """Fetch MODEL, org/name[@revision][:GGUF] of the Hub, into this machine's cache.

    May be interrupted and run again.
    """
    from hydra.cli.pull import pull_model

    set_up_logging("pull")
    pulled = pull_model(model, load_settings(config, {}), lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(pulled))
        return
    size = f"{pulled['bytes_total'] / 1e6:.1f} MB"
    click.echo(f"{pulled['model']} is in the cache: {size} of weights in {pulled['weights']}")


@click.command("plan")
@click.argument("model")
@click.option("--nodes", required=True, help="Each node's memory in GB, in order: 11,32,32.")
@click.option("--dtype", help="auto (as stored), float32, bfloat16 or float16.")
@click.option("--quantize", type=click.Choice(CHOICES["model", "quantize"]), help="As of up.")
@click.option("--max-model-len", type=click.IntRange(min=0), help="Tokens of the longest sequence (0: what fits).")
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file (default: ./config.toml if it is there).")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table, in bytes.")
def plan_command(
    model: str,
    nodes: str,
    dtype: str | None,
    quantize: str | None,
    max_model_len: int | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Show how MODEL would be split over nodes of so much memory. Exit 0 when it fits, 3 when it does not."""
    from hydra.cli.plan import plan_answer, plan_request, plan_text

    set_up_logging("plan")  # warnings about the model are no part of the answer
    settings = load_settings(config, {("model", "quantize"): quantize})
    plan = plan_answer(plan_request(model, nodes, dtype, max_model_len, settings))
    click.echo(json.dumps(plan, indent=2) if as_json else plan_text(plan))
    sys.exit(0 if plan["fits"] else 3)
