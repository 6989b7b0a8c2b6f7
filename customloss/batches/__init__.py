"""Losses of more than one forward pass: micro-batches, streams of small batches, several outputs.

Lives here: what calls a loss more than once, or adds sums of earlier batches to those of a call.
May import: ``losses``, ``_ops``, ``distributed``, ``_spec``.
Start with ``accumulation.py``, which is exact and the shortest way to see how sums are added.
"""
