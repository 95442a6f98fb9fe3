"""What a process must be started with so that glibc asks for huge pages where it takes large blocks of memory.

oneDNN packs weight matrices into memory of its own, from malloc: in small pages that takes more than twice as long.
Whoever has tuned glibc's malloc in this respect keeps what they chose; without glibc, or with a kernel that has no
transparent huge pages, it has no effect. Source: the GNU C Library manual, "Memory Allocation Tunables".
"""

from collections.abc import Mapping

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def huge_pages_env(environ: Mapping[str, str]) -> dict[str, str]:
    """What is to be added to `environ`."""
    value = environ.get(VARIABLE, "")
    if TUNABLE in value:
        return {}
    return {VARIABLE: f"{value}:{TUNABLE}=1" if value else f"{TUNABLE}=1"}
