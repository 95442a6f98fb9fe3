"""`chat`: a conversation with a running cluster over its OpenAI API. Speaks lines of text.

May import: cli, complaint, log.
Refuses to know: what serves the model, and where.
"""
