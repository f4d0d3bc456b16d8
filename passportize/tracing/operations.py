"""What the steps of a graph do to the channels of a tensor, by plain name."""

from __future__ import annotations

__all__ = ["CAT_STEPS", "MIXING_STEPS", "RESHAPE_STEPS"]

CAT_STEPS = {"cat", "concat", "concatenate"}


RESHAPE_STEPS = {
    "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as",
    "ravel", "_unsafe_view",
}  # fmt: skip


# These mix channels, or make new ones.
MIXING_STEPS = {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "matmul", "rmatmul", "mm", "bmm", "mv", "addmm", "baddbmm", "addbmm",
    "einsum", "tensordot", "dot", "inner", "outer", "kron", "cdist", "bilinear", "embedding",
    "embedding_bag", "scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru",
    "rnn_tanh", "rnn_relu", "one_hot", "unfold", "fold", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "native_channel_shuffle", "cumsum", "arange", "zeros_like", "ones_like",
    "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty",
    "new_full", "deform_conv2d",
}  # fmt: skip
