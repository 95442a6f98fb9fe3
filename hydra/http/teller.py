"""One answer's tokens as text deltas: decoded, watched for stop strings, cut at the end. Pure.

It knows one answer at a time, and neither how tokens come nor in which shape text goes out.
"""

from typing import Literal

import attrs

from hydra.actors.client import Piece, TokenLogprobs
from hydra.http.answers import Answer
from hydra.http.detokenizer import Detokenizer, StopWatch
from hydra.http.openai_request import ApiRequest
from hydra.http.tokenizer import Words


@attrs.frozen(kw_only=True)
class TokenShown:
    """A token beside its text, for logprobs."""

    token: int
    logprobs: TokenLogprobs


@attrs.frozen(kw_only=True)
class Delta:
    """New text of one answer; the last one carries the finish."""

    index: int
    text: str
    ids: tuple[int, ...]  # the tokens behind it, the one that ended the answer among them
    finish: Literal["stop", "length"] | None = None
    shown: tuple[TokenShown, ...] | None = None
    cached: int = 0


@attrs.define
class Teller:
    """One answer's tokens as text: decoded, watched for stop strings, cut at the end."""

    index: int
    detokenizer: Detokenizer
    watch: StopWatch

    @classmethod
    def of(cls, request: ApiRequest, answer: Answer, words: Words) -> "Teller":
        context = answer.prompt if request.kind == "text" or request.chat.continue_final_message else ()
        return cls(answer.index, Detokenizer(words.decode, context), StopWatch(request.stop, request.include_stop))

    def tell(self, piece: Piece) -> Delta:
        text, used = "", 0
        for number, token in enumerate(piece.token_ids):
            used += 1
            ends_it = piece.finish == "stop" and number == len(piece.token_ids) - 1
            if not ends_it:  # the id that ended the answer is not part of its text
                text += self.watch.push(self.detokenizer.push(token))
            if self.watch.stopped:
                break
        if piece.finish and not self.watch.stopped:
            text += self.watch.push(self.detokenizer.flush())
            text += self.watch.flush()
        shown = None
        if piece.logprobs is not None:
            pairs = zip(piece.token_ids[:used], piece.logprobs[:used], strict=True)
            shown = tuple(TokenShown(token=token, logprobs=logprobs) for token, logprobs in pairs)
        return Delta(
            index=self.index,
            text=text,
            ids=piece.token_ids[:used],
            finish="stop" if self.watch.stopped else piece.finish,
            shown=shown,
            cached=piece.cached_tokens,
        )
