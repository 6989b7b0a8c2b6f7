"""What computes the primitives: the compiled kernels, Triton's, or plain PyTorch.

Lives here: the table of the backends and the choice among them, the plain backend, and the loading
of the compiled libraries.
May import: ``_spec``, ``reference``, and ``customloss.kernels`` where Triton is chosen.
Start with ``choice.py``: a backend is a row of its table, and a file whose functions take groups.
"""
