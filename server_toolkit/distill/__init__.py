"""Trajectory matching: from the weights that the server received to a synthetic proxy set.

`engine.distill` does it, `segments.list_segments` says on what, `proxy_set.ProxySet` is what comes
out. Nothing is imported here: only the engine needs torch, and `serve` must not load it.
"""
