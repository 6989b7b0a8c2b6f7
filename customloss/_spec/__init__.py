"""The contract of the package: what a loss may be told, and what the primitives take.

Lives here: the words and numbers of options, how they are checked, the groups of arguments.
May import: ``reference`` and ``scores``, which import nothing of the package.
Start with ``arguments.py``, which says in groups what every primitive takes.
"""
