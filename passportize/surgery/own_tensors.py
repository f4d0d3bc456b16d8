"""Whether the tensors of a model are such that it can be trained and claimed, before it is."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from passportize.errors import SurgeryError
from passportize.utils.dense import why_not_dense

__all__ = ["check_own_tensors"]

_STATISTICS = ("running_mean", "running_var")


def check_own_tensors(model: nn.Module) -> None:
    """Raise SurgeryError if a tensor of a model would stop its training, or the claim after it.

    Args:
        model: A plain model; tensors without values (on the meta device, lazy) are left out.
    """
    for name, tensor, kept in _tensors(model):
        if tensor.is_meta or nn.parameter.is_lazy(tensor):
            continue
        what = f"{type(model).__name__}: {name}"
        reason = why_not_dense(tensor)
        if reason and kept:
            raise SurgeryError(
                f"{what} {reason}, so nobody could say later whether it is what was released; "
                "register it with persistent=False if it is no weight"
            )
        if name.rpartition(".")[2] in _STATISTICS and not bool(tensor.isfinite().all()):
            raise SurgeryError(
                f"{what} is not finite, and private statistics would start from it; measure it "
                "anew first (norm.reset_running_stats() and some batches in training mode)"
            )
        if not isinstance(tensor, nn.Parameter) or not tensor.requires_grad:
            continue
        if tensor.is_inference():
            raise SurgeryError(
                f"{what} was made under torch.inference_mode(), so it can neither be trained nor "
                "changed; take copy.deepcopy(model), made outside of it"
            )
        if not reason and any(
            step == 0 and side > 1 for step, side in zip(tensor.stride(), tensor.shape, strict=True)
        ):
            raise SurgeryError(
                f"{what} is expanded: several of its entries are one number in memory, which no "
                "optimizer can change; make it contiguous first"
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Parameters and buffers with their names, and whether they are in a state dict."""
    for path, module in model.named_modules():
        for registered in (module._parameters, module._buffers):
            for key, tensor in registered.items():
                if tensor is not None:
                    kept = key not in module._non_persistent_buffers_set
                    yield (f"{path}.{key}" if path else key), tensor, kept
