"""Hostile input for the parsers: see fuzz/__main__.py."""
