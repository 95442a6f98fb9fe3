"""Units that people use and programs count in another."""

GIGABYTE = 1_000_000_000  # as disks and settings have it, not 2^30
