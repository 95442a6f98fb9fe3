"""How long a model that has served has not: from the loss of its route to the first token after it, whatever is tried
in between. Its deadline is set once. A load that is moving when it comes is let finish, as long as it gets further than
any before it in this outage: that ends, since there are only so many bytes. Knows no plan and no timer.
"""

import attrs

MOVING_S = 5.0  # a load that is let finish is looked at again so much later


@attrs.define
class Outage:
    """`bytes_most`: as far as any of its loads had come when it was looked at."""

    began_s: float
    bytes_most: int = 0

    def is_moving(self, bytes_done: int) -> bool:
        """Whether the load under way has come further than ever before."""
        moved = bytes_done > self.bytes_most
        self.bytes_most = max(self.bytes_most, bytes_done)
        return moved
