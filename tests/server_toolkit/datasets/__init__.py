"""Tests of the loaders of published data sets."""
