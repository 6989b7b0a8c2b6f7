"""One source for every timing of this project: ``customloss bench``, ``bench/`` and the tests.

``cases`` says what is measured, ``rivals`` against whom, ``gate`` whether the answers are right,
``measure`` how, ``run`` puts them together and ``report`` prints what came out.
"""
