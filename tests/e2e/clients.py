"""Clients that ask without pause, one answer after the other, streaming or not, and remember what each saw and when.

An answer is right when it is the undisturbed text, whole. A 503 that says when to come back, before the first word,
is no answer: the client comes back. Whatever else a client is told instead of its answer is a fault, and so is an
answer that takes longer than its deadline. Knows nothing of what happens to the cluster meanwhile.
"""

import itertools
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import attrs
import openai

from tests.e2e.served import TOKENS, Served

RETRY_WITHIN_S = 5.0  # at the latest, whatever the cluster says


@attrs.define(eq=False)
class Answer:
    """One, from the first time it was asked for to its end."""

    prompt: int
    streaming: bool
    asked_s: float
    text: str = ""
    words_s: list[float] = attrs.field(factory=list)  # when each piece came
    turned_away: int = 0
    ended_s: float | None = None
    fault: str = ""
    fault_code: str = ""

    def longest_pause_s(self, now_s: float) -> float:
        """From the asking to the first piece, between two, or since the last."""
        times = [self.asked_s, *self.words_s, self.ended_s or now_s]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@attrs.define(eq=False)
class Clients:
    """Of one cluster. Start them with `asking`."""

    client: openai.OpenAI
    model: str
    asked: Served
    deadline_s: float
    answers: list[Answer] = attrs.field(factory=list, init=False)
    _stopping: threading.Event = attrs.field(factory=threading.Event, init=False)

    def done(self) -> list[Answer]:
        return [answer for answer in list(self.answers) if answer.ended_s is not None]

    def longest_pause_s(self, since_s: float = 0.0) -> float:
        """Of any stream that ran at that time or later, those that still run among them."""
        now_s = time.monotonic()
        running = [a for a in list(self.answers) if a.streaming and (a.ended_s is None or a.ended_s >= since_s)]
        return max((answer.longest_pause_s(now_s) for answer in running), default=0.0)

    def faults(self, but: Collection[int] = ()) -> list[str]:
        """What is wrong with the answers that have ended, and with those that should have; `but` for some, by id."""
        now_s, found = time.monotonic(), []
        for number, answer in enumerate(list(self.answers)):
            took_s = (answer.ended_s or now_s) - answer.asked_s
            who = (
                f"answer {number} ({'stream' if answer.streaming else 'whole'}, prompt {answer.prompt}, {took_s:.1f} s)"
            )
            if took_s > self.deadline_s:
                found.append(f"{who} hangs: {len(answer.words_s)} pieces came")
            elif answer.fault and id(answer) not in but:
                found.append(f"{who} after {len(answer.words_s)} pieces: {answer.fault}")
            elif answer.ended_s is not None and not answer.fault and answer.text != self.asked.answers[answer.prompt]:
                found.append(f"{who} is {answer.text!r}, not {self.asked.answers[answer.prompt]!r}")
        return found

    @contextmanager
    def asking(self, streaming: int, whole: int = 0) -> Iterator[None]:
        """So many clients of each kind. At the end each finishes the answer it waits for, unless that hangs."""
        kinds = [True] * streaming + [False] * whole
        threads = [
            threading.Thread(target=self._ask_on, args=(number, kind), daemon=True) for number, kind in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
        until_s = time.monotonic() + self.deadline_s
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    def _ask_on(self, number: int, streaming: bool) -> None:
        for turn in itertools.count(number):
            if self._stopping.is_set():
                return
            answer = Answer(turn % len(self.asked.prompts), streaming, time.monotonic())
            self.answers.append(answer)
            self._ask(answer)

    def _ask(self, answer: Answer) -> None:
        try:
            while (retry_s := self._try(answer)) is not None:
                answer.turned_away += 1
                time.sleep(min(retry_s, RETRY_WITHIN_S))
        except openai.APIError as error:
            answer.fault, answer.fault_code = f"{type(error).__name__}: {error}", str(error.code)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this answer
            answer.fault = repr(error)
        answer.ended_s = time.monotonic()

    def _try(self, answer: Answer) -> float | None:
        """Once. The seconds after which to come back, if that is what the cluster says."""
        prompt = self.asked.prompts[answer.prompt]
        asked = {"model": self.model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        try:
            if not answer.streaming:
                answer.text = self.client.completions.create(**asked).choices[0].text
                return None
            finish = None
            for chunk in self.client.completions.create(**asked, stream=True):
                answer.words_s.append(time.monotonic())
                answer.text += chunk.choices[0].text
                finish = chunk.choices[0].finish_reason or finish
            assert finish in ("length", "stop"), f"the stream ended with {finish!r}"
        except openai.APIStatusError as refused:
            retry_s = refused.response.headers.get("retry-after")
            if refused.status_code != 503 or retry_s is None or answer.words_s:
                raise
            return float(retry_s)
        return None
