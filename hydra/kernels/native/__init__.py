"""Decode steps on the CPU in C: products of few rows with matrices as they are stored, what is computed of each row
beside them, and programs of both. The sources lie here; they are compiled by a process's front door
(`hydra.processes.native_build`), never by this room, and loaded from where it says.

May import: nothing of Hydra.
Refuses to know: what a matrix is for, and how a compiler is called.
"""
