"""Log lines as data on standard error, and what a process prints. Nothing of it raises or waits.

May import: nothing of Hydra.
Refuses to know: what is logged.
"""
