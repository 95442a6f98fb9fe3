"""Files as such: fenced directories, whole writes, identities, sets of bytes.

May import: protocol.
Refuses to know: models.
"""
