"""One main for each process, and what it needs before its first actor: ports, state, children, checks.

May import: every room but cli, bench and simulation.
Refuses to know: what actors decide, and how a command is typed.
"""
