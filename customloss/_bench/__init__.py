"""One source for every timing of this project: ``customloss bench``, ``bench/`` and the tests.

Lives here: ``cases`` says what is measured, ``rivals`` against whom, ``gate`` whether answers are
right, ``measure`` how; ``run`` puts them together and ``report`` prints what came out.
May import: ``customloss``, ``reference``, ``_backends``.
Start with ``run.py``.
"""
