"""One answer's tokens as text deltas: decoded, watched for stop strings, cut at the end. Pure.

Special tokens are in the text that is watched, and leave it only where it is shown. It knows one answer at a time, and
neither how tokens come nor in which shape text goes out.
"""

from collections.abc import Sequence

import attrs

from hydra.http.answers import Answer
from hydra.http.openai_request import ApiRequest
from hydra.protocol.batch import EMPTY
from hydra.protocol.sampled_token import FinishReason, SampledToken
from hydra.text.detokenizer import Detokenizer, StopWatch
from hydra.text.tokenizer import ModelTokenizer


@attrs.frozen(kw_only=True)
class TokenShown:
    """A token and where it stands in the text, for log-probabilities."""

    sampled: SampledToken
    opening: bool  # whether it opens the text: so would its alternatives
    offset: int  # characters of the shown text before it


@attrs.frozen(kw_only=True)
class Delta:
    """New text of one answer; the last one carries the finish."""

    index: int
    text: str
    tokens: tuple[SampledToken, ...]  # behind it, the one that ended the answer among them
    finish: FinishReason | None = None
    shown: tuple[TokenShown, ...] | None = None  # the same where their log-probabilities are asked for


@attrs.define
class Teller:
    """Tells one answer."""

    index: int
    detokenizer: Detokenizer
    watch: StopWatch
    skip_special: bool
    min_tokens: int  # stop strings end in none of the first so many
    with_logprobs: bool
    _tokens: int = attrs.field(default=0, init=False)
    _characters: int = attrs.field(default=0, init=False)  # of the text that is shown, or would be without a stop

    @classmethod
    def of(cls, request: ApiRequest, answer: Answer, words: ModelTokenizer) -> "Teller":
        goes_on = request.kind == "text" or request.chat.continue_final_message
        return cls(
            answer.index,
            Detokenizer(words.vocabulary, answer.prompt if goes_on else EMPTY),
            StopWatch(request.stop, request.include_stop),
            request.skip_special_tokens,
            request.sampling.min_tokens,
            request.sampling.logprobs is not None,
        )

    def tell(self, tokens: Sequence[SampledToken]) -> Delta:
        """Of at least one token; at most the last of them has a finish."""
        text: list[str] = []
        shown: list[TokenShown] = []
        for token in tokens:
            if self.with_logprobs:
                place = TokenShown(sampled=token, opening=self.detokenizer.opening, offset=self._characters)
                shown.append(place)
            text.append(self._read(token))
            if self.watch.stopped:
                break
        taken = tuple(tokens[: len(text)])
        if token.finish and not self.watch.stopped:
            text += (self.watch.push(self.detokenizer.flush()), self.watch.flush())
        return Delta(
            index=self.index,
            text="".join(text),
            tokens=taken,
            finish="stop" if self.watch.stopped else token.finish,
            shown=tuple(shown) if self.with_logprobs else None,
        )

    def _read(self, sampled: SampledToken) -> str:
        """What may be shown after one more token. The id that ends the answer is part of its text only if asked for."""
        self._tokens += 1
        if sampled.finish == "stop" and not self.watch.include:
            return ""
        may_stop = self._tokens > self.min_tokens
        shown: list[str] = []
        for text, hidden in self.detokenizer.parts(sampled.token, hide_special=self.skip_special):
            self._characters += 0 if hidden else len(text)
            shown.append(self.watch.push(text, hidden=hidden, may_stop=may_stop))
        return "".join(shown)
