"""Hidden units of recurrent layers.

A unit of an LSTM has a row in each of four gates and a column where its own output comes back. The
rows of all gates, that column and whatever reads the output change places together. Its size is
fixed by the step that bounds it; its sign can change where that step is odd: with the rows of the
cell (LSTM) or of the candidate (GRU), the gates read it with the other sign.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from passportize.alignment.axes import Axis
from passportize.alignment.channels import ChannelLabels
from passportize.alignment.walk_layers import channels_along, uniform_along

__all__ = ["label_recurrent"]

_OWN_GATE = {"LSTM": 2, "GRU": 2, "RNN_TANH": 0, "RNN_RELU": 0}
"""Which block of rows makes the value of a unit; the others weigh it."""


def label_recurrent(
    labels: ChannelLabels, module: nn.RNNBase, names: Mapping[int, str], values: Tensor, step: int
) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]] | None:
    """A recurrent layer that starts from zero, of any depth and in both directions.

    Args:
        labels: Where to write down what was found.
        module: The layer.
        names: Name of every parameter, by identity.
        values: Labels of its input, channels last.
        step: Place in the forward pass.

    Returns:
        Labels of what it returns: outputs, and the last states; None where nothing is known.
    """
    last = values.dim() - 1
    if last not in (1, 2) or uniform_along(values, last):
        return None
    inputs = channels_along(labels, values, last)
    made: list[Tensor] = []
    units: list[Tensor] = []
    for layer in range(module.num_layers):
        directions = []
        for ending in ("", "_reverse")[: 1 + module.bidirectional]:
            own = _Layer(module, names, f"l{layer}{ending}", step)
            units.append(own.label(labels, inputs))
            directions.append(own.outputs)
        made += directions
        inputs = torch.cat(directions)
    outputs = inputs.view(*(1,) * last, -1).expand(*values.shape[:-1], len(inputs))
    batch = values.shape[0 if module.batch_first else 1] if last == 2 else None
    state = _stacked(made, batch)
    if module.mode == "LSTM":
        return outputs, (state, _stacked(units, batch))
    return outputs, state


class _Layer:
    """One layer in one direction.

    Attributes:
        outputs: Atoms of what it returns, which differ from its units where these are projected.
    """

    outputs: Tensor

    def __init__(
        self, module: nn.RNNBase, names: Mapping[int, str], ending: str, step: int
    ) -> None:
        self._module, self._ending, self._step = module, ending, step
        self._names = {
            key: names[id(tensor)]
            for key, tensor in module.named_parameters(recurse=False)
            if key.endswith(f"_{ending}")
        }

    def label(self, labels: ChannelLabels, inputs: Tensor) -> Tensor:
        """Write down what is found; returns the atoms of the units."""
        module = self._module
        size = module.hidden_size
        units = labels.fresh(size)
        labels.stiffen(units)
        if module.mode == "RNN_RELU":
            labels.positive(units)
        else:
            labels.unsize(units)
        count = getattr(module, f"weight_ih_{self._ending}").shape[0] // size
        gates = [labels.fresh(size) for _ in range(count)]
        gates[_OWN_GATE[module.mode]] = units
        for gate in gates:
            if gate is not units:
                labels.accompany(gate, units)
                labels.unscale(gate)
        rows = torch.cat(gates)
        self.outputs = labels.fresh(module.proj_size) if module.proj_size else units
        if module.proj_size:
            self._add(labels, "weight_hr", 1, "columns", units)
            self._add(labels, "weight_hr", 0, "rows", self.outputs)
        for kind, read in (("ih", inputs), ("hh", self.outputs)):
            self._add(labels, f"weight_{kind}", 1, "columns", read)
            self._add(labels, f"weight_{kind}", 0, "rows", rows)
            if module.bias:
                self._add(labels, f"bias_{kind}", 0, "vector", rows)
        return units

    def _add(self, labels: ChannelLabels, kind: str, dim: int, role: str, atoms: Tensor) -> None:
        name = self._names[f"{kind}_{self._ending}"]
        labels.axes.append(Axis(name, dim, role, atoms, self._step))


def _stacked(parts: list[Tensor], batch: int | None) -> Tensor:
    """The last states of all layers and directions."""
    whole = torch.stack(parts)
    return whole if batch is None else whole[:, None].expand(-1, batch, -1)
