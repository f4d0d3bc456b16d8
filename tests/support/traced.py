"""Models for the tests of tracing."""

from __future__ import annotations

from torch import Tensor, nn

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def norm_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, NORMS)}


class Pooling(nn.Module):
    """Data-dependent sizes that come from the input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        x = self.norm(self.lin(x))
        pooled = x.new_zeros(int(batch.max()) + 1, 6)
        pooled.index_add_(0, batch, x)
        return pooled[batch.unique()]
