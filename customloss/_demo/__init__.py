"""The training demo behind ``customloss demo``.

Lives here: ``data`` makes the problems, ``train`` fits and scores them, ``report`` tells results.
May import: ``customloss``.
Start with ``train.py``.
"""
