"""What the steps of a graph do to the channels of a tensor, by plain name.

One table for all who read graphs: :data:`OPERATIONS` gives every step that is known its kind (where
the entries of its output come from) and its traits (which symmetries it has as a function). Readers
take their sets from it with :func:`steps`. A step that is not in the table is not known; what that
means is the reader's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, Flag, auto
from typing import NamedTuple

__all__ = [
    "AUTOGRAD_NAMES",
    "CAT_STEPS",
    "MIXING_STEPS",
    "OPERATIONS",
    "RESHAPE_STEPS",
    "Kind",
    "Operation",
    "Trait",
    "autograd_steps",
    "steps",
]


class Kind(Enum):
    """Where the entries of a step's output come from.

    The layout kinds, ``PERMUTE`` to ``SHUFFLE``, move entries and compute nothing. ``COPY`` to
    ``PAIR`` do the same to every channel: if channels of all inputs change places, so do those of
    the output (``ALONG`` too where the channels lie along its dimension; of ``POOL`` the positions
    are meant to lie behind them, and ``REDUCE`` over the channels does not see their order). The
    rest, ``PRODUCT`` to ``CREATE``, mix channels or make new ones.
    """

    PERMUTE = "other order of the dimensions"
    RESHAPE = "other dimensions, entries in the same order"
    BROADCAST = "repeated along dimensions of length one"
    MOVE = "elsewhere along their dimension, some several times or with filling between them"
    SPLIT = "several runs of one dimension"
    SLICE = "one run of one dimension"
    INDEX = "single positions"
    CAT = "several tensors along one dimension"
    STACK = "several tensors along a new dimension"
    SHUFFLE = "channels in another order, or traded for positions"

    COPY = "the same entries, maybe of another type"
    POINTWISE = "each from the one entry of the first tensor at its place"
    PAIR = "each from the entries of several tensors at its place, broadcast"
    SUM = "a PAIR: sums and differences"
    FACTOR = "a PAIR: products, linear in each tensor alone"
    QUOTIENT = "a PAIR: quotients, linear in the first tensor alone"
    WRITE = "what was there, and what was written over a part of it"
    ALONG = "each from all entries along one dimension, which are treated alike"
    NORM = "a normalization layer as a function, with its factors"
    POOL = "each from neighbouring positions of its channel"
    REDUCE = "each from all entries along some dimensions, in whatever order"

    PRODUCT = "sums over channels by a weight, with or without a shift"
    MATMUL = "product of two tensors, of which either may be a weight"
    CONVOLUTION = "sums over channels and positions by a weight; the name ends in their number"
    TRANSPOSED = "the same with a weight that lists its inputs first"
    MIX = "several channels, in any other way"
    CREATE = "new channels, of an input its shape or indices only"


class Trait(Flag):
    """Which symmetries a step has as a function ``f`` of all tensors that it takes, together.

    A number among the operands (``x + 1``) counts as one more tensor. A trait that is not set is
    not promised; it may still hold for some arguments (``pow``) or in each tensor alone (the kinds
    ``FACTOR``, ``QUOTIENT``, ``PRODUCT`` and ``MATMUL``). Rounding does not count, and dropout is
    meant as in evaluation.
    """

    NONE = 0
    HOMOGENEOUS = auto()
    """``f(a x) = a f(x)`` for every ``a > 0``."""
    ODD = auto()
    """``f(-x) = -f(x)``."""
    EVEN = auto()
    """``f(-x) = f(x)``."""
    ADDITIVE = auto()
    """``f(x + y) = f(x) + f(y)``."""
    LINEAR = HOMOGENEOUS | ODD | ADDITIVE
    SEVERAL = auto()
    """It may give several tensors: runs, or values and where they are."""
    SHIFTED = auto()
    """What was added to all channels alike is added to all channels of the output alike, and the
    formats rely on it: behind such steps rows are read less their mean
    (:mod:`passportize.surgery.mean_free_rows`). Kinds and traits above may be corrected; this one
    is part of the layout of every claim, so no name that is in use gains or loses it. Others that
    could have it do not (``iadd``, ``concat``)."""


class Operation(NamedTuple):
    """One row of :data:`OPERATIONS`."""

    kind: Kind
    traits: Trait


def _rows(kind: Kind, traits: Trait, names: str) -> dict[str, Operation]:
    return dict.fromkeys(names.split(), Operation(kind, traits))


_PLAIN, _LINEAR, _SHIFTED = Trait.NONE, Trait.LINEAR, Trait.LINEAR | Trait.SHIFTED

OPERATIONS: Mapping[str, Operation] = {
    # Layout.
    **_rows(Kind.PERMUTE, _SHIFTED, "permute transpose swapaxes t movedim"),
    **_rows(Kind.PERMUTE, _LINEAR, "swapdims moveaxis T mT H mH adjoint"),
    **_rows(Kind.RESHAPE, _SHIFTED, "view reshape flatten unflatten squeeze unsqueeze"),
    **_rows(Kind.RESHAPE, _LINEAR, "view_as reshape_as ravel _unsafe_view"),
    **_rows(Kind.BROADCAST, _SHIFTED, "expand"),
    **_rows(Kind.BROADCAST, _LINEAR, "expand_as broadcast_to"),
    **_rows(Kind.MOVE, _SHIFTED, "roll repeat"),
    **_rows(Kind.MOVE, _LINEAR, "flip tile repeat_interleave"),
    **_rows(Kind.MOVE, Trait.SHIFTED, "pad"),
    **_rows(Kind.SPLIT, _SHIFTED | Trait.SEVERAL, "chunk split"),
    **_rows(Kind.SPLIT, _LINEAR | Trait.SEVERAL, "split_with_sizes tensor_split"),
    **_rows(Kind.SPLIT, _LINEAR | Trait.SEVERAL, "unsafe_chunk unsafe_split"),
    **_rows(Kind.SLICE, _SHIFTED, "narrow"),
    **_rows(Kind.INDEX, _SHIFTED, "getitem select"),
    **_rows(Kind.INDEX, _SHIFTED | Trait.SEVERAL, "unbind"),
    **_rows(Kind.CAT, _SHIFTED, "cat"),
    **_rows(Kind.CAT, _LINEAR, "concat concatenate"),
    **_rows(Kind.STACK, _SHIFTED, "stack"),
    **_rows(Kind.SHUFFLE, _LINEAR, "pixel_shuffle pixel_unshuffle"),
    **_rows(Kind.SHUFFLE, _LINEAR, "channel_shuffle native_channel_shuffle"),
    # Every channel alike, from one tensor.
    **_rows(Kind.COPY, _SHIFTED, "identity contiguous clone to"),
    **_rows(Kind.COPY, _LINEAR, "detach float half double bfloat16 type type_as"),
    **_rows(Kind.POINTWISE, _SHIFTED, "dropout"),
    **_rows(Kind.POINTWISE, _LINEAR, "neg dropout1d dropout2d dropout3d feature_dropout"),
    **_rows(Kind.POINTWISE, Trait.HOMOGENEOUS, "relu leaky_relu"),
    **_rows(Kind.POINTWISE, Trait.HOMOGENEOUS | Trait.EVEN, "abs"),
    **_rows(Kind.POINTWISE, Trait.ODD, "tanh sin softsign reciprocal"),
    **_rows(Kind.POINTWISE, Trait.ODD, "atan asinh sinh erf tanhshrink softshrink hardshrink"),
    **_rows(Kind.POINTWISE, Trait.EVEN, "square cos"),
    **_rows(
        Kind.POINTWISE,
        _PLAIN,
        "gelu silu mish sigmoid elu selu celu softplus hardswish hardsigmoid hardtanh relu6 "
        "clamp clip exp log sqrt rsqrt pow rpow logsigmoid",
    ),
    **_rows(Kind.ALONG, _PLAIN, "softmax log_softmax"),
    **_rows(Kind.ALONG, Trait.ODD, "normalize"),
    **_rows(Kind.NORM, _PLAIN, "batch_norm layer_norm group_norm instance_norm rms_norm"),
    **_rows(Kind.POOL, _SHIFTED, "avg_pool1d avg_pool2d"),
    **_rows(Kind.POOL, _SHIFTED, "adaptive_avg_pool1d adaptive_avg_pool2d"),
    **_rows(Kind.POOL, _LINEAR, "avg_pool3d adaptive_avg_pool3d interpolate upsample"),
    **_rows(Kind.POOL, Trait.HOMOGENEOUS, "max_pool1d max_pool2d max_pool3d"),
    **_rows(Kind.POOL, Trait.HOMOGENEOUS, "adaptive_max_pool1d adaptive_max_pool2d"),
    **_rows(Kind.POOL, Trait.HOMOGENEOUS, "boolean_dispatch"),  # torch's name for its max pools
    **_rows(Kind.REDUCE, _SHIFTED, "mean"),
    **_rows(Kind.REDUCE, _LINEAR, "sum nanmean nansum"),
    **_rows(Kind.REDUCE, Trait.HOMOGENEOUS, "amax amin quantile"),
    **_rows(Kind.REDUCE, Trait.HOMOGENEOUS | Trait.EVEN, "norm vector_norm std"),
    **_rows(Kind.REDUCE, Trait.EVEN, "var"),
    **_rows(Kind.REDUCE, _PLAIN, "prod logsumexp"),
    **_rows(Kind.REDUCE, Trait.HOMOGENEOUS | Trait.SEVERAL, "max min median mode"),
    **_rows(Kind.REDUCE, Trait.HOMOGENEOUS | Trait.SEVERAL, "kthvalue std_mean"),
    **_rows(Kind.REDUCE, Trait.SEVERAL, "var_mean"),
    # Every channel alike, from several tensors.
    **_rows(Kind.SUM, _SHIFTED, "add sub"),
    **_rows(Kind.SUM, _LINEAR, "radd iadd rsub isub subtract"),
    **_rows(Kind.FACTOR, Trait.EVEN, "mul rmul imul multiply"),
    **_rows(Kind.QUOTIENT, Trait.EVEN, "div idiv truediv itruediv divide true_divide"),
    **_rows(Kind.PAIR, _LINEAR, "where lerp"),
    **_rows(Kind.PAIR, Trait.HOMOGENEOUS, "maximum minimum fmax fmin"),
    **_rows(Kind.PAIR, Trait.HOMOGENEOUS | Trait.EVEN, "hypot"),
    **_rows(Kind.PAIR, Trait.EVEN, "rdiv rtruediv"),
    **_rows(Kind.PAIR, _PLAIN, "addcmul addcdiv logaddexp"),
    **_rows(Kind.WRITE, _LINEAR, "setitem copy masked_fill"),
    # Channels mixed or made.
    **_rows(Kind.PRODUCT, _PLAIN, "linear addmm baddbmm addbmm mv addmv"),
    **_rows(Kind.MATMUL, Trait.EVEN, "matmul rmatmul mm bmm"),
    **_rows(Kind.CONVOLUTION, _PLAIN, "conv1d conv2d conv3d"),
    **_rows(Kind.TRANSPOSED, _PLAIN, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_rows(Kind.MIX, _LINEAR, "unfold fold cumsum"),
    **_rows(Kind.MIX, Trait.EVEN, "dot inner outer kron"),
    **_rows(Kind.MIX, Trait.HOMOGENEOUS | Trait.EVEN, "cdist"),
    **_rows(
        Kind.MIX,
        _PLAIN,
        "einsum tensordot bilinear scaled_dot_product_attention multi_head_attention_forward lstm "
        "gru rnn_tanh rnn_relu deform_conv2d",
    ),
    **_rows(
        Kind.CREATE,
        _PLAIN,
        "embedding embedding_bag one_hot arange zeros_like ones_like empty_like full_like "
        "rand_like randn_like new_zeros new_ones new_empty new_full",
    ),
}
"""Kind and traits of every step that is known, by its name in a recorded graph
(:func:`passportize.tracing.graph.step_name`)."""

AUTOGRAD_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("alias", "unsafe_view"), "view"),
    "reshape_alias": "reshape",
    "slice": "narrow",
    "to_copy": "to",
    "constant_pad_nd": "pad",
    **dict.fromkeys(
        ("convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable"),
        "conv2d",
    ),
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), "batch_norm"),
}
"""Names that only autograd gives steps, and one in :data:`OPERATIONS` that does the same."""


def steps(*kinds: Kind, having: Trait = Trait.NONE, lacking: Trait = Trait.NONE) -> frozenset[str]:
    """Names of the steps of some kinds.

    Args:
        *kinds: The kinds; all by default.
        having: Traits that all of them have.
        lacking: Traits that none of them has in full.
    """
    return frozenset(
        name
        for name, (kind, traits) in OPERATIONS.items()
        if (not kinds or kind in kinds)
        and having in traits
        and (lacking is Trait.NONE or lacking not in traits)
    )


def autograd_steps(*kinds: Kind, having: Trait = Trait.NONE) -> frozenset[str]:
    """The same, and what autograd calls them."""
    known = steps(*kinds, having=having)
    return known | {name for name, same in AUTOGRAD_NAMES.items() if same in known}


CAT_STEPS = steps(Kind.CAT)
RESHAPE_STEPS = steps(Kind.RESHAPE)
MIXING_STEPS = steps(
    Kind.SHUFFLE,
    Kind.PRODUCT,
    Kind.MATMUL,
    Kind.CONVOLUTION,
    Kind.TRANSPOSED,
    Kind.MIX,
    Kind.CREATE,
)
"""These mix channels, or make new ones: no channel of the output is one of the input's."""
