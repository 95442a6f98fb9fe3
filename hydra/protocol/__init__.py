"""The ground: what is said between the processes, and how it travels. Imports no other room."""
