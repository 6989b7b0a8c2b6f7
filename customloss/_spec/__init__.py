"""The contract of the package: the options of a loss, and the arguments of the primitives.

Lives here: the words and numbers of options, how they are checked, the groups of arguments.
May import: ``reference`` and ``scores``, which import nothing of the package.
Start with ``arguments.py``, which lists the groups of arguments that every primitive takes.
"""
