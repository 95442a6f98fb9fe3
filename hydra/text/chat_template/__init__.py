"""Chat templates in a closed sandbox, each piece of work paid for.

May import: the rest of text, protocol.
Refuses to know: requests and tokenizers.
"""
