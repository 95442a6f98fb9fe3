"""SPEC.md and the code say the same: every message has a row, a sender and a handler, every queue its bound.

The tables of states are compared where the machines are led through them, in tests/unit/actors/test_transitions.py.
"""

import ast
import importlib
import inspect
import re
import typing

import attrs
import pytest

from hydra.actors.core import facts
from hydra.actors.core.authority import SPEAKERS
from hydra.actors.core.gateway import ACCEPTS
from hydra.protocol.batch import Step, StepResult
from hydra.protocol.messages import Message
from hydra.protocol.messages.journal import JournalKind
from hydra.protocol.store_lane import ChunkRefused, ChunkReply, ChunkRequest
from tests.unit.house.sources import HOUSE, ROOT, constructed, files, matched, relative, tree

SPEC = (HOUSE / "protocol" / "SPEC.md").read_text()
KINDS = {kind.__name__: kind for kind in typing.get_args(Message)}

# Where an actor's sentences are made and heard, and what its process is to the coordinator.
ROOMS = {
    "registry": ("actors/membership/registry.py",),
    "planner": ("actors/planning/",),
    "broker": ("actors/scheduling/",),
    "status": ("actors/families/status.py",),
    "member": ("actors/core/membership.py", "actors/core/identity.py", "actors/families/"),
    "stage": ("actors/stage/",),
    "scout": ("actors/membership/scout.py",),
    "sessions": ("actors/sessions/",),
    "asks": ("actors/families/frontend.py",),
    "parent": ("actors/families/parent.py", "actors/families/supervisor.py"),
    "journal": ("actors/families/journal_keeper.py", "actors/core/journal_outbox.py"),
}
ROLE = {"stage": "worker", "scout": "worker", "sessions": "frontend", "asks": "frontend", "parent": "parent"}
IN_THE_COORDINATOR = {"registry", "planner", "broker", "status", "journal"}
EVERYBODY = {"worker", "frontend", "parent"}


def table(heading, text=SPEC):
    """The rows below a line of headings, as cells."""
    assert heading in text, f"SPEC.md has no table {heading!r}"
    lines = text.split(heading, 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


MESSAGES, OTHERS = (
    {row[0].strip("`"): row for row in table("| message | from | to | when |", text)}
    for text in (SPEC, SPEC.split("On the data and the store lane", 1)[1])
)
METRIC = re.compile(r"hydra_[a-z]\w+")
QUEUES = table("| queue | holds | bound | file | when it is full |")


def trees_of(rooms):
    return [tree(path) for path in files() if relative(path).startswith(tuple(rooms))]


def names_in(cell):
    return [name.strip() for name in cell.split(",")]


# ---------------------------------------------------------------- messages of the command lane


def test_the_table_and_the_union_have_the_same_messages():
    assert list(MESSAGES) == [*KINDS], "SPEC.md lists them in the order of the union"


def test_a_message_goes_where_the_door_lets_it_in():
    doors = {name: {actor for actor, kinds in ACCEPTS.items() if kind in kinds} for name, kind in KINDS.items()}
    assert doors == {name: {to} for name, (_, _, to, _) in MESSAGES.items()}


def speakers_of(name):
    """Who says it on a wire, by its row."""
    _, senders, to, _ = MESSAGES[name]
    speakers = set()
    for sender in names_in(senders):
        if sender == "member" or (sender == to == "journal"):
            speakers |= EVERYBODY  # each has one of its own
        elif sender not in IN_THE_COORDINATOR:
            speakers.add(ROLE[sender])
        elif to not in IN_THE_COORDINATOR:
            speakers.add("coordinator")
    return speakers


def test_a_message_comes_from_whoever_may_say_it():
    assert {name: SPEAKERS[kind] - {"stranger"} for name, kind in KINDS.items()} == {
        name: speakers_of(name) for name in MESSAGES
    }


def homeless(rows, trees_of):
    """(message, what is missing) for each that its sender does not make, or its receiver has no case for."""
    missing = []
    for name, senders, to, _ in rows:
        for sender in names_in(senders):
            if not any(name.strip("`") in constructed(source) for source in trees_of(ROOMS[sender])):
                missing.append((name, f"no {sender} says it"))
        if not any(name.strip("`") in matched(source) for source in trees_of(ROOMS[to])):
            missing.append((name, f"the {to} has no case for it"))
    return missing


def test_a_message_is_made_by_its_sender_and_handled_by_its_receiver():
    assert not homeless(MESSAGES.values(), trees_of)


def test_a_message_that_answers_goes_the_other_way():
    wrong = []
    for name, senders, to, when in MESSAGES.values():
        for asked in re.findall(r"`(\w+)`", when.split("answers", 1)[1] if when.startswith("answers") else ""):
            _, askers, answerer, _ = MESSAGES[asked]
            if answerer not in names_in(senders) or to not in names_in(askers):
                wrong.append(f"{name} does not answer {asked}")
    assert not wrong


# ---------------------------------------------------------------- the other lanes

PLACES = {
    Step: ("actors/scheduling/broker.py", "encode_step", "decode_step", "actors/stage/"),
    StepResult: ("actors/stage/", "encode_result", "decode_result", "actors/families/coordinator.py"),
    ChunkRequest: ("protocol/range_window.py", "encode_ask", "decode_ask", "actors/families/store_server.py"),
    ChunkReply: ("actors/families/store_server.py", "encode_answer", "decode_answer", "store/"),
    ChunkRefused: ("actors/families/store_server.py", "encode_answer", "decode_answer", "store/"),
}  # fmt: skip


def test_the_other_lanes_are_in_the_contract():
    assert set(OTHERS) == {kind.__name__ for kind in PLACES}


def test_a_message_of_another_lane_is_made_and_taken():
    for kind, (made_in, encode, decode, taken_in) in PLACES.items():
        sends_in = "store/" if kind is ChunkRequest else "actors/"
        for name, room in ((kind.__name__, made_in), (encode, sends_in), (decode, taken_in)):
            assert any(name in constructed(source) for source in trees_of([room])), f"{room} has no {name}"


# ---------------------------------------------------------------- effects, events and facts inside a process

WORD = re.compile(r"(Event|Effect|[\w, ]+ -> [\w, ]+): (.*)", re.DOTALL)


def declared(path):
    """(name, what it is, of whom, meaning) of what an actor's file declares: the first word about a class says it."""
    for node in tree(path).body:
        said = WORD.match(ast.get_docstring(node) or "") if isinstance(node, ast.ClassDef) else None
        if said:
            first, means = said[1], " ".join(said[2].split())
            where = f"`{relative(path).removeprefix('actors/')}`"
            yield node.name, *(("fact", first) if "->" in first else (first.lower(), where)), means


INSIDE = [row for path in files() if relative(path).startswith("actors/") for row in declared(path)]


def test_what_is_said_inside_a_process_is_in_the_contract():
    listed = [(name.strip("`"), *rest) for name, *rest in table("| name | is a | of | means |")]
    assert listed == INSIDE


def test_every_fact_says_whose_it_is():
    kinds = [name for name, kind in inspect.getmembers(facts, inspect.isclass) if kind.__module__ == facts.__name__]
    assert set(kinds) == {name for name, word, *_ in INSIDE if word == "fact"}


def test_what_actors_of_a_process_say_is_made_and_handled():
    sources = trees_of(["actors/", "processes/"])
    made = set().union(*(constructed(source) for source in sources))
    handled = set().union(*(matched(source) for source in sources))
    assert not [f"nothing makes a {name}" for name, *_ in INSIDE if name not in made]
    assert not [f"nothing has a case for {name}" for name, *_ in INSIDE if name not in handled]


# ---------------------------------------------------------------- the journal


def test_an_entry_of_the_journal_has_its_kind_in_the_contract():
    rows = table("| kind | written by | means, and what it fills beside")
    kinds = [kind for cell, *_ in rows for kind in re.findall(r"`(\w+)`", cell)]
    assert sorted(kinds) == sorted(typing.get_args(JournalKind))


# ---------------------------------------------------------------- metrics


def test_a_metric_has_its_name_in_the_contract():
    """Whatever string in the code is the name of one, with the kind that it is declared with."""
    named = {
        node.value
        for path in files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and METRIC.fullmatch(node.value)
    }
    rows = table("| metric | kind | means |")
    assert sorted(named) == [name.strip("`") for name, *_ in rows]
    ends = {"counter": "_total", "histogram": "_seconds"}
    assert not [name for name, kind, _ in rows if not name.strip("`").endswith(ends.get(kind, ""))]


def test_what_readers_are_told_of_metrics_is_there():
    readme = METRIC.findall((ROOT / "README.md").read_text())
    assert readme and set(readme) <= {name.strip("`") for name, *_ in table("| metric | kind | means |")}


# ---------------------------------------------------------------- queues


def holds_in_code(bound, file):
    """What the code says that a queue holds."""
    module = importlib.import_module("hydra." + file.strip("`").removesuffix(".py").replace("/", "."))
    owner, _, field = bound.strip("`").rpartition(".")
    value = attrs.fields_dict(getattr(module, owner))[field].default if owner else getattr(module, field)
    return f"credits + {value(7) - 7}" if callable(value) else str(value)


def test_a_queue_holds_what_the_contract_says():
    said = {queue: holds.rpartition(" ")[0] for queue, holds, *_ in QUEUES}
    assert said == {queue: holds_in_code(bound, file) for queue, _, bound, file, _ in QUEUES}


MAKES_A_QUEUE = re.compile(
    r"open_memory_channel\S*\(|\bQueue\(|SimpleQueue\(|\bdeque\b[\[(]|factory=deque|make_socket\("
)
# What looks like a queue and holds no more than something else that is bounded.
NO_QUEUE_OF_ITS_OWN = {
    "actors/scheduling/scheduler.py": "flights are as many as credits, rows as many as running_max",
    "kernels/weights/reader.py": "the chunks of one slice, made before the first is read",
    "protocol/wires/zmq_sockets.py": "the factory itself: every caller says its bound",
    "protocol/wires/zmq_store.py": "as STORE_BOUND says, handed in",
    "protocol/wires/zmq_dial.py": "one handshake, and goodbye",
    "simulation/": "in memory; bounded like the lanes it stands for",
}


def test_every_queue_is_in_the_contract():
    listed = {file.strip("`") for *_, file, _ in QUEUES}
    made = {relative(path) for path in files() if MAKES_A_QUEUE.search(path.read_text())}
    unknown = {file for file in made - listed if not file.startswith(tuple(NO_QUEUE_OF_ITS_OWN))}
    assert not unknown, f"queues that SPEC.md does not list: {unknown}"
    idle = {start for start in NO_QUEUE_OF_ITS_OWN if not any(file.startswith(start) for file in made)}
    assert not idle, f"no queue is made there any more: {idle}"


@pytest.mark.parametrize(
    "line",
    [
        "trio.open_memory_channel(5)",
        "trio.open_memory_channel[int](0)",
        "queue.Queue(maxsize=2)",
        "deque()",
        "deque[int]()",
    ],
)
def test_the_rule_sees_a_queue(line):
    assert MAKES_A_QUEUE.search(line)


# ---------------------------------------------------------------- the rules, seen to fail


def test_a_row_without_a_sender_or_a_handler_is_seen():
    source = ast.parse("match event:\n    case Hello(): Welcome(term=1)")
    rows = [["`Welcome`", "registry", "member", ""], ["`Hello`", "member", "registry", ""]]
    assert homeless(rows, lambda rooms: [source]) == [
        ("`Welcome`", "the member has no case for it"), ("`Hello`", "no member says it")
    ]  # fmt: skip


def test_a_message_that_nobody_makes_or_handles_is_seen():
    source = ast.parse(
        "class A:\n"
        "    def handle(self, event):\n"
        "        match event:\n"
        "            case Received(message=Hello()): return [Send(to, Welcome(term=1)), partial(Later, 1)]\n"
        "            case Goodbye() | Beacon(): return isinstance(event, Open | Close)\n"
    )
    assert {"Hello", "Goodbye", "Beacon", "Received", "Open", "Close"} <= matched(source)
    assert not {"Welcome", "Ready"} & matched(source)
    assert {"Welcome", "Send", "Later"} <= constructed(source) and not {"Hello", "Goodbye"} & constructed(source)


def test_a_table_is_read_to_its_end():
    text = "before\n\n| a | b |\n|---|---|\n| `x` | 1 |\n| y | 2 |\n\n| z | 3 |\n"
    assert table("| a | b |", text) == [["`x`", "1"], ["y", "2"]]
