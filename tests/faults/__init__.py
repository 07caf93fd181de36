"""Faults: what the service promises while something is broken, and after it was mended.

Each test starts the service as an operator does, breaks one thing, and asks through an `Observer`,
which holds every answer, whatever it is, against what must never happen.
"""
