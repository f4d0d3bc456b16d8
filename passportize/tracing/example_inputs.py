"""What a model is called with in order to be read: a tensor, arguments, or a callable."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from passportize.errors import InvalidArgument
from passportize.utils.foreign import input_shape_of
from passportize.utils.trees import arguments_of, leaves_in

__all__ = ["ExampleInputs", "default_inputs", "given_or_random", "random_inputs"]

_CALLABLES = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    functools.partial,
)


@dataclass(frozen=True)
class ExampleInputs:
    """Arguments of one forward pass.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        runner: Runs the model by itself, ``runner(model)``; then there are no arguments.
        origin: Where they come from, for notes: ``"given"``, ``"default_cfg"`` or ``"guessed"``.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    runner: Callable[[nn.Module], Any] | None = None
    origin: str = "given"

    @classmethod
    def of(cls, value: Any) -> ExampleInputs:
        """Read what a user gave as ``example_inputs``.

        Args:
            value: The arguments of one call as
                :func:`~passportize.utils.trees.arguments_of` takes them, or a function that takes
                the model and runs it.

        Raises:
            InvalidArgument: A mapping has keys that can't be argument names, or a shape was given.
        """
        if isinstance(value, ExampleInputs):
            return value
        if isinstance(value, _CALLABLES):
            return cls(runner=value)
        args, kwargs = arguments_of(value)
        if len(args) > 1 and all(type(item) is int for item in args):
            raise InvalidArgument(
                f"example_inputs: {args} looks like a shape, but a tuple is taken as the "
                f"arguments of the model. Pass torch.zeros({args}) instead"
            )
        return cls(args, kwargs)

    def copy(self) -> ExampleInputs:
        """The same with copied tensors and objects, so that a forward can't change the user's."""
        if self.runner is not None:
            return self
        memo: dict[int, Any] = {}
        return ExampleInputs(
            tuple(_copied(item, memo) for item in self.args),
            {key: _copied(item, memo) for key, item in self.kwargs.items()},
            None,
            self.origin,
        )

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor among the arguments, with a name."""
        for path, item in (*leaves_in(self.args, ("input",)), *leaves_in(self.kwargs)):
            if isinstance(item, Tensor):
                yield "_".join(map(str, path)), item

    @property
    def is_real(self) -> bool:
        """Whether the model can be run on them for real: no tensor is on the meta device."""
        if self.runner is not None:
            return True
        return not any(tensor.is_meta for _, tensor in self.tensors())

    def call(self, model: nn.Module) -> Any:
        """Run the model."""
        if self.runner is not None:
            return self.runner(model)
        return model(*self.args, **self.kwargs)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return value if value.is_meta else value.detach().clone()
    if type(value) in (tuple, list):
        return type(value)(_copied(item, memo) for item in value)
    if type(value) is dict:
        return {key: _copied(item, memo) for key, item in value.items()}
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # whatever a foreign object raises, the object itself will do
        return value


def default_inputs(model: nn.Module) -> ExampleInputs | None:
    """A batch of two on the meta device, of the size that the model's configuration names.

    Read are ``pretrained_cfg`` and ``default_cfg`` with ``input_size``, as timm has them, and
    ``config`` with ``image_size`` and ``num_channels``, as transformers has it; nothing is
    imported. A model that says it was built for another size (``patch_embed.img_size``) is given
    that size.
    """
    shape = input_shape_of(model)
    if shape is None:
        return None
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(built_for, (tuple, list)) and len(built_for) == len(shape) - 1:
        shape[1:] = [int(item) for item in built_for]
    first = next(model.parameters(), None)
    dtype = first.dtype if first is not None else torch.get_default_dtype()
    tensor = torch.empty([2, *shape], dtype=dtype, device="meta")
    return ExampleInputs(args=(tensor,), origin="default_cfg")


def random_inputs(model: nn.Module) -> ExampleInputs | None:
    """The same for a real run: noise from a fixed seed, where the model is."""
    named = default_inputs(model)
    if named is None:
        return None
    generator = torch.Generator(device="cpu").manual_seed(0)
    place = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    tensors = tuple(
        torch.randn(item.shape, generator=generator, device="cpu").to(place, item.dtype)
        for item in named.args
    )
    return ExampleInputs(tensors)


def given_or_random(model: nn.Module, example_inputs: Any = None) -> ExampleInputs | None:
    """What a user gave as ``example_inputs``, and :func:`random_inputs` if that is nothing."""
    return random_inputs(model) if example_inputs is None else ExampleInputs.of(example_inputs)
