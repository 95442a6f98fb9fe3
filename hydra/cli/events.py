"""`events`: what the cluster decided and suffered, and how a pause of an answer came about."""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import click

from hydra.cli.cluster import DEFAULT_URL
from hydra.cli.cluster_client import ask_cluster, follow_events
from hydra.complaint import Complaint

RECONNECT_S = 1.0


@click.command()
@click.option("--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option("--session", default="", metavar="ID", help="One answer: the id in its response, or a session's number.")
@click.option("--node", default="", metavar="NAME", help="What is about this node.")
@click.option("--route", type=click.IntRange(min=0), help="What is about this route.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--url", default=DEFAULT_URL, show_default=True, envvar="HYDRA_URL")
def events_command(follow: bool, session: str, node: str, route: int | None, as_json: bool, url: str) -> None:
    """What the cluster decided and suffered: joins, losses, plans, loads, pauses.

    With --session, the story of each pause of that answer: every step, and how long it took.
    """
    conditions = {"session": session, "node": node, "route": route}
    query = urlencode({name: value for name, value in conditions.items() if value not in ("", None)})
    path = f"/api/events?{query}" if query else "/api/events"
    if follow:
        for event in _followed(url, path):
            _show(event, as_json=as_json)
        return
    answer = ask_cluster("GET", url, path)
    if session and not as_json:
        _tell(answer, session)
        return
    for event in sorted(answer["events"], key=lambda event: (event["time"], event["id"])):
        _show(event, as_json=as_json)


def _followed(url: str, path: str) -> Iterator[dict[str, Any]]:
    """What is there and what comes. A connection that breaks is made again, from the last event on."""
    last_id = ""
    while True:
        try:
            for event in follow_events(url, path, last_id):
                last_id = str(event.get("id", last_id))
                yield event
        except Complaint as complaint:
            if not last_id or complaint.exit_code != 5:
                raise
            click.echo(f"{complaint.what}; trying again", err=True)
        time.sleep(RECONNECT_S)


def _clock(time_s: float) -> str:
    """As the reader's clock says."""
    return datetime.fromtimestamp(time_s).strftime("%H:%M:%S.%f")[:-3]


def _show(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(event))
    elif "id" in event:
        click.echo(f"{_clock(event['time'])}  {event['text']}")
    else:
        click.echo(f"({event['reason']})")


def _tell(answer: dict[str, Any], session: str) -> None:
    if not answer["stories"]:
        known = "nothing of it is in the journal" if not answer["events"] else "it was not interrupted"
        click.echo(f"no pause of {session}: {known}", err=True)
    for number, story in enumerate(answer["stories"]):
        if number:
            click.echo("")
        for line in story:
            step = "" if line is story[0] else f"+{line['step_s']:.3f} s"
            click.echo(f"{_clock(line['time_s'])} {step:>10}  {line['text']}")
