"""Triton twins of ``csrc/cuda``, for devices that the compiled kernels do not reach.

Importing this package needs neither Triton nor a GPU; importing its module ``confusion`` needs
Triton.
"""
