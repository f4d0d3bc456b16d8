"""Attacks on passports, for honest tests of the scheme: one file each."""

from passportize.attacks.closed_form import forge_private_branch
from passportize.attacks.disguise import mix_channels
from passportize.attacks.kernel_shift import shift_standardised_kernels
from passportize.attacks.neuron_scale import scale_neurons
from passportize.attacks.permutation import permute_channels
from passportize.attacks.projection import project_weights, unused_shares
from passportize.attacks.sign_flip import flip_channel_signs
from passportize.attacks.spectral import turn_directions_over
from passportize.attacks.stream_shift import shift_streams

__all__ = [
    "flip_channel_signs",
    "forge_private_branch",
    "mix_channels",
    "permute_channels",
    "project_weights",
    "scale_neurons",
    "shift_standardised_kernels",
    "shift_streams",
    "turn_directions_over",
    "unused_shares",
]
