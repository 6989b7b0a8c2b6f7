"""The operators as PyTorch sees them: schemas, autograd, batching rules, fake tensors, DTensors.

Lives here: everything between ``torch.ops.customloss`` and a backend.
May import: ``_backends``, ``_spec``, ``reference``, ``distributed``.
Start with ``register.py``, which defines every operator; ``autograd.py`` has the two passes.
"""
