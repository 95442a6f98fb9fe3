"""A model's words: tokenizer, vocabulary, chat templates. Nothing that a directory says is executed.

May import: store, protocol.
Refuses to know: HTTP and OpenAI's shapes.
"""
