"""``customloss.patch``: the names of other libraries stand for our losses, wherever they are used.

Lives here: peers.py (the table of libraries and names), replacing.py (the names of one library, in
modules that are there), imports.py (in modules that are imported later), processes.py (in processes
that are started later), patch.py (``patch`` and ``unpatch``) and command.py (``customloss patch``).
May import: ``_spec``.
Start with the table in peers.py.
"""
