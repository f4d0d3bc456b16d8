"""The switch of the fused kernels is as before, wherever its own code is interrupted."""

from __future__ import annotations

import pytest
import torch

from passportize.utils.all_or_nothing import process_as_before
from passportize.utils.fused_kernels import FUSED_KERNELS, fused_kernels_off
from tests.support.interruptions import interrupted, lines_of


def run() -> None:
    with fused_kernels_off():
        assert not torch.backends.mha.get_fastpath_enabled()
        with fused_kernels_off():
            pass
        assert not torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("enabled", [True, False])
def test_interrupted_at_every_line(enabled: bool) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(not enabled)
    run()  # what it noted last is not what is to be put back
    torch.backends.mha.set_fastpath_enabled(enabled)
    call = process_as_before(run)
    try:
        for point in range(1, lines_of(call) + 1):
            interrupted(call, point)
            assert torch.backends.mha.get_fastpath_enabled() is enabled
            assert FUSED_KERNELS.depth() == 0
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
