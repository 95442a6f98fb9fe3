"""What is said between processes, and how it travels. Speaks messages and bytes.

May import: nothing of Hydra.
Refuses to know: who decides, computes, or reads a file.
"""
