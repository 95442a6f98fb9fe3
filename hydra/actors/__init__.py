"""The head: who decides what. Speaks tokens and time; knows no tensor, no socket and no word."""
