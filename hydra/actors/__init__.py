"""Who decides what: membership, plans, schedules, sessions. Speaks tokens and time.

May import: protocol. Its machines are pure; the shells in core, stage and families do what they ask for.
Refuses to know: tensors, sockets, words, files.
"""
