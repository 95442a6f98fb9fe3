"""The command that measures the budgets."""

import json
import sys

import click

from hydra.log.set_up import set_up_logging


@click.command("bench")
@click.argument("budgets", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@click.option("--device", default="cpu", show_default=True, help="Of P1, R and L: cpu, or a list like cuda:0,cuda:1.")
@click.option("--quick", is_flag=True, help="Fewer rounds: minutes become one, and the figures noisier.")
def bench_command(budgets: tuple[str, ...], as_json: bool, device: str, quick: bool) -> None:
    """Measure BUDGETS (P1, P2, P4, R, L = load, G = GPU, Q = quant; default: all) as ratios.

    Exit 0 when all are met, 1 when one is not.
    """
    from hydra.bench import command
    from hydra.processes.machine_facts import MachineFacts
    from hydra.processes.preflight import check_devices

    set_up_logging("bench")
    command.check_device(device)
    names = command.measurable_on(command.wanted_names(budgets), device, asked=bool(budgets))
    check_devices("--device", device.split(","), MachineFacts.look())
    results = command.measure_budgets(names, device=device, quick=quick, say=lambda line: click.echo(line, err=True))
    click.echo(json.dumps(command.as_json(results), indent=2) if as_json else command.as_table(results))
    sys.exit(0 if command.all_hold(results) else 1)
