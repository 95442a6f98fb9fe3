"""Which modules a list of a config means: names, and regular expressions that a stranger wrote.

Promises: an expression is tried only where it cannot take long, and all of them together take MATCHING_S at most;
others are refused by name. Each rule matches as the library does that writes such lists. Refuses to know what a match
means.
"""

import math
import re
import time
from collections.abc import Iterable, Sequence

import attrs

from hydra.protocol.refusal import refuse
from hydra.store.files.directory import shown

PATTERN_MAX = 2000  # characters of one expression
NAME_MAX = 128  # characters of a module's name that expressions are tried on
STEPS_MAX = 50_000_000  # of one attempt at a match, at worst
MATCHING_S = 1.0  # of computing, all attempts of one model together

_REPEAT = re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}")
_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"
_LITERAL = re.compile(r"(?:[\w.]*\w)?", re.ASCII)  # a dot at its end would stand for anything


@attrs.define
class Matching:
    """The time that the expressions of one model have taken; `where` is the key they stand under."""

    where: str
    used_s: float = 0.0

    def compile(self, pattern: str, *, anywhere: bool = False) -> "re.Pattern[str]":
        """For `match`, or `anywhere` in a name for `search`. Raises RefusalError: bad_model for what is no expression,
        unsupported for one that may take long."""
        reason = "too long" if len(pattern) > PATTERN_MAX else _why_slow(pattern, anywhere=anywhere)
        if reason is not None:
            raise refuse("unsupported", f"{self.where}: the expression {shown(pattern)} is not tried: it is {reason}.")
        try:
            return re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise refuse("bad_model", f"{self.where}: {shown(pattern)} is no regular expression: {error}.") from error

    def match(self, pattern: "re.Pattern[str]", name: str) -> bool:
        return self._timed(pattern, name, anywhere=False)

    def search(self, pattern: "re.Pattern[str]", name: str) -> bool:
        return self._timed(pattern, name, anywhere=True)

    def _timed(self, pattern: "re.Pattern[str]", name: str, *, anywhere: bool) -> bool:
        if len(name) > NAME_MAX:
            raise refuse("bad_model", f"{self.where}: the name {shown(name)} is too long to be matched.")
        began_s = time.thread_time()
        matches = pattern.search(name) if anywhere else pattern.match(name)
        self.used_s += time.thread_time() - began_s
        if self.used_s > MATCHING_S:
            raise refuse("unsupported", f"{self.where}: its expressions take longer than {MATCHING_S:g} s.")
        return matches is not None


@attrs.frozen(eq=False)
class Skips:
    """`modules_to_not_convert` as transformers reads it: a pattern means a name that it is the end of, or that begins
    with it up to a dot, as it stands or as an expression."""

    ends: frozenset[str]
    end_lengths: frozenset[int]
    begins: frozenset[str]
    expressions: tuple["re.Pattern[str]", ...]
    matching: Matching

    @classmethod
    def of(cls, patterns: Sequence[str], where: str) -> "Skips":
        matching = Matching(where)
        literal = [pattern for pattern in patterns if _LITERAL.fullmatch(pattern)]
        others = [pattern for pattern in patterns if not _LITERAL.fullmatch(pattern)]
        for pattern in others:
            matching.compile(pattern)
        expressions = tuple(re.compile(rf"(?:{pattern}){_BOUNDARY}") for pattern in others)
        lengths = frozenset(len(pattern) for pattern in patterns)
        return cls(frozenset(patterns), lengths, frozenset(literal), expressions, matching)

    def skip(self, name: str) -> bool:
        if any(name[max(0, len(name) - length) :] in self.ends for length in self.end_lengths):
            return True
        if not self.begins.isdisjoint(_beginnings(name)):
            return True
        return any(self.matching.match(expression, name) for expression in self.expressions)


@attrs.frozen(eq=False)
class TargetNames:
    """`targets` and `ignore` as compressed-tensors reads them: a whole name, or with "re:" before it an expression that
    a name begins with. In the order in which a module takes its scheme: names, then expressions by the alphabet."""

    exact: frozenset[str]
    expressions: tuple[tuple[str, "re.Pattern[str]"], ...]
    matching: Matching

    @classmethod
    def of(cls, patterns: Iterable[str], where: str) -> "TargetNames":
        matching = Matching(where)
        unique = dict.fromkeys(patterns)
        expressions = [
            (pattern, matching.compile(pattern.removeprefix("re:")))
            for pattern in sorted(unique)
            if pattern.startswith("re:")
        ]
        return cls(frozenset(p for p in unique if not p.startswith("re:")), tuple(expressions), matching)

    def first(self, name: str, classes: Sequence[str]) -> str | None:
        """The pattern that decides for a module of this name and these classes; None where none matches."""
        if name in self.exact:
            return name
        for pattern, expression in self.expressions:
            if self.matching.match(expression, name):
                return pattern
        return next((kind for kind in sorted(classes) if kind in self.exact), None)


def _beginnings(name: str) -> list[str]:
    """What of a name ends at a dot, before or behind it, or at its end."""
    dots = [at for at, character in enumerate(name) if character == "."]
    return ["", name, *(name[:at] for at in dots), *(name[: at + 1] for at in dots)]


# ---------------------------------------------------------------- how long an expression may take


@attrs.define
class _Cost:
    """Of a match that fails at last: `choices` ways through it, and `loops` that may each end anywhere."""

    loops: int
    choices: int = 1

    def is_high(self) -> bool:
        steps: int = self.choices * NAME_MAX**self.loops
        return steps > STEPS_MAX * math.factorial(self.loops)


def _why_slow(pattern: str, *, anywhere: bool) -> str | None:
    """What of an expression could take long on a name; None when nothing can. Repeated groups may, and so may many
    loops one behind the other."""
    cost, alternatives, at = _Cost(loops=1 if anywhere else 0), [1], 0
    after_group = False
    while at < len(pattern):
        character, repeat = pattern[at], _REPEAT.match(pattern, at)
        is_loop = character in "*+" or repeat is not None
        if is_loop and after_group:
            return "a repeated group"
        if character == "\\" and pattern[at + 1 : at + 2].isdigit():
            return "one that refers back to its groups"
        if character == "(" and pattern.startswith("(?", at) and pattern[at + 2 : at + 3] not in (":", "!", "="):
            return "of a kind that is not known here"
        after_group = character == ")"
        if character == "(":
            alternatives.append(1)
        elif character == "|":
            alternatives[-1] += 1
        elif character == ")" and len(alternatives) > 1:
            cost.choices *= alternatives.pop()
        elif character == "?":
            cost.choices *= 2
        elif is_loop:
            _count_loop(cost, repeat)
        if cost.is_high():
            return "too complex"
        at = _after(pattern, at, repeat)
    cost.choices *= math.prod(alternatives)
    return "too complex" if cost.is_high() else None


def _count_loop(cost: _Cost, repeat: "re.Match[str] | None") -> None:
    least, comma, most = (repeat[1], repeat[2], repeat[3]) if repeat is not None else ("", ",", "")
    if comma and not most:
        cost.loops += 1
    elif comma:
        cost.choices *= max(1, int(most) - int(least or 0) + 1)


def _after(pattern: str, at: int, repeat: "re.Match[str] | None") -> int:
    """Where the next thing of an expression begins: an escape is one thing, and so is a set of characters."""
    if pattern[at] == "\\":
        return at + 2
    if repeat is not None:
        return repeat.end()
    if pattern.startswith("(?", at):
        return at + 3
    if pattern[at] != "[":
        return at + 1
    at += 2 if pattern.startswith("[^", at) else 1
    at += 1 if pattern.startswith("]", at) else 0
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at + 1
