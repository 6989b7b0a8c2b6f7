"""One source for every timing of this project: ``customloss bench``, ``bench/`` and the tests.

Lives here: ``cases`` says what is measured, ``rivals`` against whom, ``gate`` whether answers are
right, ``measure`` how, ``machine`` on what; ``run`` puts them together; ``report`` and ``figure``
show the results.
May import: ``customloss``, ``reference``, ``_backends``.
Start with ``run.py``.
"""
