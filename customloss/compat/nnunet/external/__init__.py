"""A folder for ``nnUNet_extTrainer``, all of whose files nnU-Net imports as modules of their own.

Lives here: nnUNetTrainerCustomloss.py, and nothing else.
May import: ``compat``.
Start with ``trainer.py`` in the folder above.
"""
