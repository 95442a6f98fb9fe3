"""Where the rows of a decode step find their past, as columns on the device. Knows no kernel that reads them."""

import attrs
from torch import Tensor


@attrs.frozen(eq=False)
class PagedRows:
    """Where the rows of a step find their past: `reach` positions from 0 on, those before `first` hidden."""

    table: Tensor  # [rows, blocks] int32
    reach: Tensor  # [rows] int64, at least first + 1
    first: Tensor  # [rows] int64
    block_size: int
