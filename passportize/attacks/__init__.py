"""Attacks on marks, for honest tests of a scheme: one file each, in one table by name."""

# Files that register attacks and export nothing.
from passportize.attacks import ambiguity as ambiguity
from passportize.attacks import crafted_claims as crafted_claims
from passportize.attacks import cut_layers as cut_layers
from passportize.attacks import distil as distil
from passportize.attacks import dummy_neurons as dummy_neurons
from passportize.attacks import erb as erb
from passportize.attacks import fine_tune as fine_tune
from passportize.attacks import fitted_statistics as fitted_statistics
from passportize.attacks import key_search as key_search
from passportize.attacks import multiply_layers as multiply_layers
from passportize.attacks import overwrite as overwrite
from passportize.attacks import prune_channels as prune_channels
from passportize.attacks.attack import (
    Attack,
    Attacked,
    Forged,
    Means,
    attack_names,
    find_attack,
    register_attack,
)
from passportize.attacks.closed_form import forge_private_branch
from passportize.attacks.disguise import mix_channels
from passportize.attacks.kernel_shift import shift_standardised_kernels
from passportize.attacks.neuron_scale import scale_neurons
from passportize.attacks.noise import add_noise
from passportize.attacks.permutation import permute_channels
from passportize.attacks.projection import drown_weights, project_weights, unused_shares
from passportize.attacks.prune import prune_weights
from passportize.attacks.quantise import quantise_weights
from passportize.attacks.running import Cost, Outcome, Rating, rate, run_attack
from passportize.attacks.sign_flip import flip_channel_signs
from passportize.attacks.spectral import turn_directions_over
from passportize.attacks.stream_shift import shift_streams
from passportize.attacks.wider_heads import widen_heads
from passportize.attacks.wider_streams import widen_streams

__all__ = [
    "Attack",
    "Attacked",
    "Cost",
    "Forged",
    "Means",
    "Outcome",
    "Rating",
    "add_noise",
    "attack_names",
    "drown_weights",
    "find_attack",
    "flip_channel_signs",
    "forge_private_branch",
    "mix_channels",
    "permute_channels",
    "project_weights",
    "prune_weights",
    "quantise_weights",
    "rate",
    "register_attack",
    "run_attack",
    "scale_neurons",
    "shift_standardised_kernels",
    "shift_streams",
    "turn_directions_over",
    "unused_shares",
    "widen_heads",
    "widen_streams",
]
