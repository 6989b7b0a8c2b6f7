"""One source for every timing of this project: ``customloss bench``, ``bench/`` and the tests.

Lives here: ``cases`` says what is measured, ``rivals`` against whom; their losses are in
``formulas`` (plain PyTorch), ``by_hand`` (eager, block by block), ``analytic`` (compiled passes
with a backward by hand, the exponentials of ``arithmetic`` and the memory of ``kept``), ``at_once``
(small inputs) and ``libraries`` (MONAI, nnU-Net, smp, kornia). ``gate`` says whether answers are
right, ``measure`` how, ``memory`` and ``machine`` on what; ``run`` puts them together. ``results``
saves the samples and computes ratios, roofs and verdicts of them; ``report`` and ``figure`` show
these. ``roof`` times the forward pass against a sum in and beyond each cache, and ``roof_table``
shows that.
May import: ``customloss``, ``reference``, ``_backends``.
Start with ``run.py``.
"""
