"""Losses in the vocabularies of other libraries and papers, one file each.

Lives here: losses and modules that take another library's names and defaults, and give its numbers,
what they share (drop_in.py), and what puts them into the place of that library's (patching/).
May import: ``batches``, ``losses``, ``scores``, ``_spec``.
Start with ``custom_f1.py``, a small one, then ``monai/scores.py``.
"""
