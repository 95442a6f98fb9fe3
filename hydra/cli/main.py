"""The command line: words in, settings out; results on standard output, everything else on standard error."""

import os
import sys
from importlib import metadata

import click

from hydra.cli.bench import bench_command
from hydra.cli.chat.command import chat_command
from hydra.cli.children import coordinator_child, frontend_child, worker_child
from hydra.cli.cluster import load_command, ps_command, status_command, unload_command
from hydra.cli.events import events_command
from hydra.cli.models import plan_command, pull_command
from hydra.cli.up import up_command
from hydra.cli.worker import worker_command
from hydra.complaint import Complaint
from hydra.log.set_up import say_at_end
from hydra.log.standard_streams import print_line
from hydra.settings import unknown_variables

SUBCOMMANDS = (
    up_command,
    worker_command,
    status_command,
    ps_command,
    events_command,
    chat_command,
    load_command,
    unload_command,
    pull_command,
    plan_command,
    bench_command,
    coordinator_child,
    worker_child,
    frontend_child,
)


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
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hydra-actors", prog_name="hydra")
@click.pass_context
def cli(context: click.Context) -> None:
    """One large language model over the unequal devices you own, behind the OpenAI API."""
    if context.invoked_subcommand is not None and not context.invoked_subcommand.startswith("_"):
        for line in unknown_variables(os.environ):
            print_line(f"warning: {line}", error=True)


for command in SUBCOMMANDS:
    cli.add_command(command)
