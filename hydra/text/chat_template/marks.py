"""Marks in what somebody wrote, on its way through a chat template: private-use characters, which mean nothing.

They are taken out of every text before they are used, so that nobody can write one. It knows nothing else.
"""

import re

OPENS, CLOSES = "\U000f0000", "\U000f0001"  # around what looks like a control token
CUT = "\U000f0002"  # where a message that is to be continued ends
ALL_MARKS = OPENS + CLOSES + CUT
MARKS = re.compile(f"[{ALL_MARKS}]")
