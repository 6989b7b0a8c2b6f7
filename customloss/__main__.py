"""``python -m customloss`` is the ``customloss`` command."""

from customloss.cli import main

main()
