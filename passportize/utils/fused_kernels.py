"""torch's one switch for the fused kernels of attention, shared by threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["FUSED_KERNELS", "fused_kernels_off"]


class _FusedKernels:
    """torch's one switch for the fused kernels of attention, which several threads may want off."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._depths: dict[int, int] = {}
        self._before = True

    def depth(self) -> int:
        """How many times this thread wants them off."""
        return self._depths.get(threading.get_ident(), 0)

    def leave_to(self, depth: int) -> None:
        """Set how many times it does; they are as before when no thread does any more."""
        thread = threading.get_ident()
        with self.lock:
            # In this order, so that a call again mends what an interruption leaves at any line.
            if depth:
                if not self._depths:
                    self._before = torch.backends.mha.get_fastpath_enabled()
                self._depths[thread] = depth
                torch.backends.mha.set_fastpath_enabled(False)
                return
            if self._depths.keys() == {thread}:
                torch.backends.mha.set_fastpath_enabled(self._before)
            self._depths.pop(thread, None)


FUSED_KERNELS = _FusedKernels()


@contextmanager
def fused_kernels_off(wanted: bool = True) -> Iterator[None]:
    """Run without the fused kernel of nn.TransformerEncoderLayer, which passes over its norms."""
    depth = FUSED_KERNELS.depth()
    try:
        FUSED_KERNELS.leave_to(depth + wanted)
        yield
    finally:
        FUSED_KERNELS.leave_to(depth)
