"""The command line: one file for each family of commands. It reads words, and calls what does the work.

May import: everything.
Refuses to know: what it would have to repeat from processes or store.
"""
