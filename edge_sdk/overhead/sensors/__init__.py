"""Readers of power, temperature and clocks: one file a kind, parsers apart from the reading."""
