"""Losses in the vocabularies of other libraries and papers, one file each.

Lives here: losses and modules that take another library's names and defaults, and give its numbers.
May import: ``losses``, ``scores``, ``_spec``.
Start with ``custom_f1.py``, a small one.
"""
