"""How much there is in a JSON text, told before it is parsed: parsing holds the interpreter from end to end.

Numbers and long texts are cheap, and a prompt may hold a million of the first. Lists, objects and names are not.
"""

import re

from hydra.protocol.refusal import refuse

QUOTES_MAX, GROUPS_MAX, NAMES_MAX = 1 << 19, 1 << 16, 1 << 17
_TEXT = re.compile(rb'"(?:[^"\\]+|\\.)*+"?', re.DOTALL)  # one that has no end goes to the end: nothing is read twice


def check_size(body: bytes) -> None:
    """Raises RefusalError invalid_json."""
    if body.count(b'"') - body.count(b'\\"') > QUOTES_MAX:
        raise refuse("invalid_json", f"the body has more than {QUOTES_MAX // 2} texts and names")
    structure = _TEXT.sub(b"", body)
    if structure.count(b"[") + structure.count(b"{") > GROUPS_MAX:
        raise refuse("invalid_json", f"the body has more than {GROUPS_MAX} lists and objects")
    if structure.count(b":") > NAMES_MAX:
        raise refuse("invalid_json", f"the body has more than {NAMES_MAX} names")
