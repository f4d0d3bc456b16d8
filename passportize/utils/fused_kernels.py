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
        with self.lock:
            was_off = bool(self._depths)
            self._depths[threading.get_ident()] = depth
            if not depth:
                del self._depths[threading.get_ident()]
            if self._depths and not was_off:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            elif was_off and not self._depths:
                torch.backends.mha.set_fastpath_enabled(self._before)


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
