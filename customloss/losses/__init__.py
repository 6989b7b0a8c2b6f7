"""The losses, as functions and modules.

Lives here: a file for each family (``ratios``, ``composed``, ``extra_sums``, ``pointwise``,
``compound``, ``compound_presets``), with a function and its module side by side, and the routes of
a call from a batch to its loss.
May import: ``_ops``, ``_backends``, ``_spec``, ``reference``, ``scores``, ``distributed``.
Start with ``ratios.py``, then ``route.py``.
"""
