"""The hands: what is computed. Speaks tensors; knows no socket, no actor and no word."""
