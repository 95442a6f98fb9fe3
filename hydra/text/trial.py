"""A model's words, tried once in a process that may be killed, before this one lets them in.

Promises: whoever loads words here has seen them parsed, probed and rendered elsewhere, within a limit of memory, of CPU
time for each part, and of time. A tokenizer that fails costs the model; a template only its chats. It knows nothing of
clusters.
"""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson

from hydra.protocol.refusal import Refusal, RefusalError, refuse
from hydra.text.chat_template.budget import BudgetSpent
from hydra.text.chat_template.template import ChatTemplate
from hydra.text.tokenizer import ChatInput, ModelTokenizer
from hydra.text.tokenizer_check import check_probes, check_steps
from hydra.text.tokenizer_files import TOKENIZER_BYTES_MAX, natively

MEGABYTE = 1 << 20
PARSE_S, PARSE_S_PER_MB = 0.8, 0.15  # CPU time of each part
PROBE_S, RENDER_S = 0.8, 0.8
MEMORY_BYTES, MEMORY_PER_BYTE = 1 << 30, 24  # address space, and more for every byte of tokenizer.json
START_S = 10.0  # of a busy machine, until the parts begin
SLOWNESS = 8.0  # a busy machine's time for a second of CPU

SAID = {"role": "user", "content": "Hello {{ there }} <b>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
CHATS: tuple[list[dict[str, Any]], ...] = (
    [SAID],
    [{"role": "system", "content": "Be brief."}, SAID, {"role": "assistant", "content": "Hi."}, SAID],
    [SAID, {"role": "assistant", "content": "", "tool_calls": [CALL]},
     {"role": "tool", "tool_call_id": "call00001", "name": "look", "content": "seen"}],
    [SAID, {"role": "assistant", "content": "Hi."}] * 64 + [SAID],
)  # fmt: skip


def load_tried(directory: Path, template_file: Path | None = None) -> ModelTokenizer:
    """Blocks for as long as the trial takes. Raises RefusalError bad_model."""
    file = directory / "tokenizer.json"
    try:
        size = file.stat().st_size if file.is_file() else 0
    except OSError as error:  # a directory that may not be looked into
        raise refuse("bad_model", f"tokenizer.json cannot be read: {error.strerror}") from error
    failed = _try_elsewhere(directory, template_file, size) if size <= TOKENIZER_BYTES_MAX else {}
    words = ModelTokenizer.load(directory, template_file)  # which says no to what is larger, at no cost
    words.templates.update(failed)
    for template in words.templates.values():
        if isinstance(template, ChatTemplate):
            template.call_form  # noqa: B018 - tried now, so that no request waits for it
    return words


def _try_elsewhere(directory: Path, template_file: Path | None, size: int) -> dict[str, Refusal]:
    """The templates that failed. Raises RefusalError bad_model when the tokenizer did."""
    cpu_s = PARSE_S + PARSE_S_PER_MB * size / MEGABYTE + PROBE_S + RENDER_S
    argv = [sys.executable, "-P", "-m", "hydra.text.trial", str(directory), str(template_file or ""), str(size)]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HYDRA_", "HF_"))}  # no secrets
    # -P: nothing is imported from where we happen to stand, which may be the model directory; so say where we are.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), env.get("PYTHONPATH")]))
    child = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, text=True
    )
    with child:
        try:
            output, _ = child.communicate(timeout=START_S + SLOWNESS * cpu_s)
        except subprocess.TimeoutExpired:
            child.kill()
            output, _ = child.communicate()
    lines = [orjson.loads(line) for line in output.splitlines() if line.endswith("}")]
    if not lines:
        message = "tokenizer.json was tried in a process of its own, which ran out of time or memory or crashed"
        raise refuse("bad_model", message)
    if lines[0]["why"]:
        raise refuse("bad_model", lines[0]["why"])
    verdicts = {line["template"]: line["why"] for line in lines[1:]}
    lost = "the chat template was tried in a process of its own, which ran out of time or memory or crashed"
    failed = {name: verdicts.get(name, lost) for name in lines[0]["templates"] if verdicts.get(name, lost)}
    return {name: Refusal(code="invalid_value", message=why, param="messages") for name, why in failed.items()}


# ---------------------------------------------------------------- in the process that may be killed


def trial_main(directory: Path, template_file: Path | None, size: int) -> None:
    """Says one JSON object per part on standard output: the tokenizer first, then each template."""
    whole_s = PARSE_S + PARSE_S_PER_MB * size / MEGABYTE + PROBE_S + RENDER_S
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(whole_s) + 5, int(whole_s) + 5))
    memory = MEMORY_BYTES + MEMORY_PER_BYTE * size
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        _die_after(PARSE_S + PARSE_S_PER_MB * size / MEGABYTE)
        words = ModelTokenizer.load(directory, template_file)
        check_steps(words.tokenizer)
        _die_after(PROBE_S)
        natively(check_probes, words.tokenizer)
    except RefusalError as error:
        _say(why=error.refusal.message)
        return
    _say(why="", templates=sorted(words.templates, key=lambda name: (name != "default", name)))
    for name in sorted(words.templates, key=lambda name: (name != "default", name)):
        _die_after(RENDER_S)
        _say(template=name, why=_verdict(words, name))


def _verdict(words: ModelTokenizer, name: str) -> str:
    """Why a template cannot be used; empty when it can. That it refuses one of our chats is no reason."""
    template = words.templates[name]
    if not isinstance(template, ChatTemplate):
        return template.message
    for messages in CHATS:
        chat = ChatInput(
            messages=messages,
            tools=[TOOL] if "tools" in template.names else None,
            documents=[{"title": "A", "text": "b"}] if "documents" in template.names else None,
            template=name,
        )
        try:
            words.encode_chat(chat)
        except RefusalError as error:
            if isinstance(error.__cause__, BudgetSpent | MemoryError):
                return error.refusal.message
    return ""


def _die_after(cpu_s: float) -> None:
    """The signal's own action ends the process, also inside native code."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def _say(**output: object) -> None:
    sys.stdout.write(orjson.dumps(output).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    trial_main(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None, int(sys.argv[3]))
