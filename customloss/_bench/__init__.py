"""One source for every timing of this project: ``customloss bench``, ``bench/`` and the tests.

Lives here: ``cases`` says what is measured, ``rivals`` against whom; their losses are in
``formulas`` (plain PyTorch), ``analytic`` (compiled passes with a backward by hand) and
``libraries`` (MONAI, nnU-Net, smp, kornia). ``gate`` says whether answers are right, ``measure``
how, ``machine`` on what; ``run`` puts them together; ``report`` and ``figure`` show the results.
May import: ``customloss``, ``reference``, ``_backends``.
Start with ``run.py``.
"""
