"""When being turned away by a coordinator is final, and what the person is told then.

A wrong token or version does not mend itself. A name that is taken may be held by one's own former life for a moment,
so that is final only when it has lasted. Pure: the clock is handed in.
"""

from collections.abc import Mapping

import attrs

from hydra.complaint import Complaint
from hydra.protocol.refusal import Refusal

AGAIN_S = 5.0  # refusals further apart than this, and than they asked for, are two stories
LASTING_S = 10.0
FINAL: Mapping[str, tuple[int, str]] = {
    "unauthorized": (6, "set HYDRA_CLUSTER_JOIN_TOKEN (or [cluster] join_token) to that of the cluster"),
    "version_mismatch": (4, "run the same version of Hydra on all machines"),
    "invalid_value": (2, "start it with other options: another --node-id where its name is taken"),
}


@attrs.define
class Doorstep:
    """`lasting_s`: for how long it must have been so before it is final."""

    lasting_s: float = LASTING_S
    codes: frozenset[str] = frozenset(FINAL)
    is_news: bool = attrs.field(default=False, init=False)  # whether what was heard last opens a story
    _code: str | None = attrs.field(default=None, init=False)
    _since_s: float = attrs.field(default=0.0, init=False)
    _until_s: float = attrs.field(default=float("-inf"), init=False)

    def hear(self, refusal: Refusal, now_s: float) -> Complaint | None:
        """The end, if this is it."""
        self.is_news = refusal.code != self._code or now_s > self._until_s
        if self.is_news:
            self._code, self._since_s = refusal.code, now_s
        self._until_s = now_s + max(AGAIN_S, 2 * (refusal.retry_after_s or 0.0))
        if refusal.code not in self.codes or now_s - self._since_s < self.lasting_s:
            return None
        exit_code, fix = FINAL[refusal.code]
        return Complaint(refusal.message, "the coordinator turned this process away", fix, exit_code)


def parents_doorstep() -> Doorstep:
    """A parent's own name is random, so only its token and its version can be wrong: that is final at once."""
    return Doorstep(lasting_s=0.0, codes=frozenset({"unauthorized", "version_mismatch"}))
