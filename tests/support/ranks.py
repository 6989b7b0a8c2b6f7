"""Processes on this machine that are the ranks of a gloo group, and what they check together."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

# a rank that hangs is an error within the time a test may take
PATIENCE = timedelta(seconds=60)
# Ranks are forked from a process that has imported these: to import torch takes as long as most
# checks. It has not imported customloss, which reads the environment of a rank.
IMPORTED = ["torch.distributed.tensor", "torch.testing", "pytest", "ranks"]


def run(world: int, *checks: Callable[[], None], **environment: str) -> None:
    """Every check on every rank, one after the other; what one of them raises is raised here.

    A check is found again by the name of its file and its own: it has to be at top level.
    """
    names = [(Path(check.__code__.co_filename).stem, check.__name__) for check in checks]
    multiprocessing.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        given = (world, f"file://{folder}/store", names, environment)
        torch.multiprocessing.start_processes(_rank, given, nprocs=world, start_method="forkserver")


def _rank(
    rank: int, world: int, store: str, names: list[tuple[str, str]], environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=PATIENCE
    )
    for module, check in names:
        torch.manual_seed(0)
        getattr(importlib.import_module(module), check)()
    # a group that something still refers to, a traceback say, can abort the exit of Python
    gc.collect()
    dist.destroy_process_group()
