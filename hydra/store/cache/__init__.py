"""A machine's local copy of just those byte ranges that its workers need.

May import: files, protocol.
Refuses to know: where a source has its bytes from.
"""
