"""Real servers for the tests, one module each: started on free loopback ports, without root.

Each module has a frozen record of what a test needs to know of the server, and a context manager
that starts the server below a directory and ends it. `tests/conftest.py` makes fixtures of them.
"""
