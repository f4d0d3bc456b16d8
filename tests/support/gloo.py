"""Several gloo processes for one test; they come from a server that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["run_ranks"]

LIMIT = 240.0


def run_ranks(ranks: int, work: Callable[..., Any], *args: Any, group: bool = True) -> list[Any]:
    """``work(rank, *args)`` in so many processes; what each returned, in order.

    Args:
        ranks: Number of processes.
        work: A function of a test module.
        *args: What can be pickled.
        group: Whether the processes form a gloo group before the work begins.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "passportize.integrations.timm"])
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank, args=(rank, ranks, folder, group, work, args, theirs), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        results = []
        try:
            for rank, pipe in enumerate(pipes):
                if not pipe.poll(LIMIT):
                    raise TimeoutError(f"rank {rank} of {ranks} is still busy after {LIMIT} s")
                try:
                    ok, result = pipe.recv()
                except EOFError:
                    raise RuntimeError(f"rank {rank} of {ranks} died") from None
                if not ok:
                    raise RuntimeError(f"rank {rank} of {ranks} failed:\n{result}")
                results.append(result)
        finally:
            for process in processes:
                process.join(0.5 if len(results) < ranks else 30)
                if process.is_alive():
                    process.kill()
    return results


def _rank(
    rank: int,
    ranks: int,
    folder: str,
    group: bool,
    work: Callable[..., Any],
    args: tuple[Any, ...],
    pipe: Any,
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    os.environ["GLOO_STORE"] = str(Path(folder) / "store")
    try:
        if group:
            join_group()
        result = work(rank, *args)
        if dist.is_initialized():
            dist.destroy_process_group()
        pipe.send((True, result))
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def join_group() -> None:
    """Make the gloo group of this process; a training script does it itself."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.FileStore(os.environ["GLOO_STORE"], ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
