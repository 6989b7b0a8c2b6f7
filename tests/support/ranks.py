"""Runs checks in processes on this machine that are the ranks of one gloo group."""

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

# A rank that hangs becomes an error well before the test itself times out.
PATIENCE = timedelta(seconds=60)
# Ranks are forked from a process that has imported these, because importing torch takes as long as
# most checks. customloss is not among them: it reads the environment, which each run may change.
IMPORTED = ["torch.distributed.tensor", "torch.testing", "pytest", "ranks"]


def run(world: int, *checks: Callable[[], None], **environment: str) -> None:
    """Runs every check on every rank, one after the other, and raises what one of them raises.

    A rank finds a check by the names of its file and function, so a check has to be at top level.
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
    # Python can abort at exit if something, such as a traceback, still refers to the group.
    gc.collect()
    dist.destroy_process_group()
