"""Stand-ins without data for the tensors of a model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from passportize.utils.trees import meta_twin

__all__ = ["MetaTwins"]


class MetaTwins:
    """One stand-in on the meta device for every tensor that a recording meets.

    Args:
        model: Its parameters and buffers are known by their first names.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(tensor): name for name, tensor in model.named_buffers()}
        self._names.update({id(tensor): name for name, tensor in model.named_parameters()})
        self._twins: dict[int, Tensor] = {}
        self._twin_names: dict[int, str] = {}
        self._tainted: set[int] = set()
        # Everything is known by its identity, so nothing may be freed meanwhile.
        self._alive: list[Any] = []

    def keep(self, tensor: Tensor) -> None:
        """Hold a tensor as long as the recording lasts."""
        self._alive.append(tensor)

    def name_of(self, twin: Tensor) -> str | None:
        """Name of the parameter or buffer that a tensor stands for."""
        return self._twin_names.get(id(twin))

    def state(self, tensor: Tensor) -> Tensor:
        """What a forward sees in place of a parameter or buffer."""
        if id(tensor) not in self._names:
            return tensor
        twin = self._twins.get(id(tensor))
        if twin is None:
            # Integer buffers hold indices and counters that code may branch on: keep their values.
            with_values = not (tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta)
            twin = tensor.detach().clone() if with_values else meta_twin(tensor)
            self._remember(tensor, twin)
        return twin

    def of(self, tensor: Tensor) -> Tensor:
        """The stand-in of any tensor; a tensor without data stands for itself."""
        if tensor.is_meta:
            return self.state(tensor)
        twin = self._twins.get(id(tensor))
        if twin is None or not twin.is_meta:
            twin = meta_twin(tensor)
            self._remember(tensor, twin)
        return twin

    def is_traced(self, tensor: Tensor) -> bool:
        """Whether the value of a tensor depends on the model, so that it is not known."""
        key = id(tensor)
        return (
            tensor.is_meta
            or key in self._tainted
            or (key in self._names and tensor.is_floating_point())
        )

    def taint(self, tensor: Tensor) -> None:
        """A tensor with values was written into, and they are not known any more."""
        self._tainted.add(id(tensor))
        self._alive.append(tensor)

    def _remember(self, tensor: Tensor, twin: Tensor) -> None:
        self._twins[id(tensor)] = twin
        self._alive += (tensor, twin)
        name = self._names.get(id(tensor))
        if name is not None and twin.is_meta:
            self._twin_names[id(twin)] = name
