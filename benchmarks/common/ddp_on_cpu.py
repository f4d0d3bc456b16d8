"""timm's script on several CPU processes, which it cannot do alone.

    torchrun --nproc-per-node 2 ddp_on_cpu.py passportize.integrations.timm --passport ... train.py
    torchrun --nproc-per-node 2 ddp_on_cpu.py train.py ARGS

timm asks DistributedDataParallel for ``device_ids=[cpu]``, which torch refuses. They are dropped
here. And the wrapped model is kept a moment longer than the script does: with its last reference
goes torch's gloo group, which waits for its own thread while it holds the interpreter lock. If that
thread has not yet let go of the tensors of the last all-reduce, it waits for the lock, for ever.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path
from typing import Any

from torch.nn.parallel import DistributedDataParallel

MOMENT = 1.0
"""Seconds in which the thread of the gloo group can have the interpreter lock."""


def main() -> None:
    original = DistributedDataParallel.__init__
    kept: list[DistributedDataParallel] = []

    def without_devices(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("device_ids", None)
        original(self, *args, **kwargs)
        kept.append(self)

    DistributedDataParallel.__init__ = without_devices  # type: ignore[method-assign]
    sys.argv = sys.argv[1:]
    target = sys.argv[0]
    try:
        if target.endswith(".py"):
            # As `python train.py` does; here it is this file's folder.
            sys.path[0] = str(Path(target).resolve().parent)
            runpy.run_path(target, run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    finally:
        time.sleep(MOMENT)


if __name__ == "__main__":
    main()
