"""Who lives in which process: coordinator, frontend, worker, parent, and what only one of them has.

May import: every other part of actors, protocol.
Refuses to know: how a process is started, and what a file or a tensor is.
"""
