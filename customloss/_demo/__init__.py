"""The training demo: ``data`` makes the problems, ``train`` fits and scores them, ``report`` says
what came out."""
