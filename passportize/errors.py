"""Every error that passportize raises on purpose.

Each message names the place (a module, a file, an argument), the reason and the next step. None
ever contains a secret. Catch :class:`PassportizeError` to catch them all.
"""

from __future__ import annotations


class PassportizeError(Exception):
    """Base class of all errors raised by passportize."""


# --- arguments -------------------------------------------------------------------------------


class InvalidArgument(PassportizeError, ValueError):
    """An argument has the wrong type or value."""


class UnknownSite(InvalidArgument):
    """A name or pattern given by the user matches no normalization layer of the model."""


class MissingExtra(PassportizeError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


# --- surgery ---------------------------------------------------------------------------------


class SurgeryError(PassportizeError):
    """Base class of the errors that surgery on a model can raise."""


class AlreadyPassportized(SurgeryError):
    """The model already carries private branches."""


class NotPassportized(SurgeryError):
    """The model carries no private branch."""


class WrappedModel(SurgeryError, TypeError):
    """The model is inside DDP, DataParallel, FSDP, torch.compile or TorchScript."""


class NoNormalization(SurgeryError):
    """The model has no normalization layer that could be given a private branch."""


class UnsupportedNorm(SurgeryError):
    """A normalization layer has no adapter, or an adapter was registered wrongly."""


class UninitializedModule(SurgeryError):
    """A lazy module has not seen data yet, so its shapes are unknown."""


class DegenerateSite(SurgeryError):
    """A site can carry no signature bit (too few inputs per channel, say)."""


class JointPassRefused(SurgeryError, RuntimeError):
    """The pass in which a model was to train gives other numbers than the plain model."""


# --- tracing and anchors ---------------------------------------------------------------------


class TracingError(SurgeryError):
    """Base class of the errors that happen while the model is being read."""


class Untraceable(TracingError):
    """No tracer could read the model."""


class ExampleInputRequired(TracingError):
    """The model can only be read with an example input, and none was given."""


class ExampleInputFailed(TracingError):
    """The model raised an error on the example input."""


class AnchorNotFound(TracingError):
    """A weight that a site should be bound to does not exist or has the wrong shape."""


# --- training --------------------------------------------------------------------------------


class TrainingError(PassportizeError):
    """Base class of the errors that training with passports can raise."""


class BranchMisuse(TrainingError, RuntimeError):
    """A two-branch layer was reached in a way that would give wrong numbers."""


class PassportLocked(TrainingError):
    """The private branch was loaded without its secret; unlock it with the passport."""


class EmbeddingFailed(TrainingError):
    """The signature cannot be written into a weight; the message names it and says why."""


class BranchLost(TrainingError):
    """Another conversion replaced passportized layers after surgery."""


# --- passports, claims, verification ---------------------------------------------------------


class PassportError(PassportizeError):
    """Base class of the errors about passports."""


class PassportFileError(PassportError):
    """A passport file is missing, damaged, of another kind or of a newer version."""


class WrongPassphrase(PassportError):
    """The passphrase does not open the passport file."""


class MessageTooLong(PassportError):
    """The owner message does not fit into the signature bits of the model."""


class ClaimError(PassportizeError):
    """Base class of the errors about claims."""


class ClaimFileError(ClaimError):
    """A claim file is missing, damaged, of another kind or of a newer version."""


class WrongPassport(ClaimError):
    """The passport is not the one that the claim was made with."""


class ClaimMismatch(ClaimError):
    """No site of the claim exists in the model."""


class CommitmentError(PassportizeError):
    """Base class of the errors about release commitments."""


class CommitmentFileError(CommitmentError):
    """A release commitment is missing, not canonical, of another kind or of a newer version."""


class CommitmentRefused(CommitmentError):
    """Base class: a release commitment was read, and does not hold."""


class BadSignature(CommitmentRefused):
    """The signature is not that of the key that the release commitment names."""


class CommitmentMismatch(CommitmentRefused):
    """A file that is shown is not the one that was committed to; the message says which."""


class TimestampRefused(CommitmentRefused):
    """A timestamp is for other data, or not by an authority that was trusted at its time."""


class CheckpointError(PassportizeError):
    """A checkpoint file is missing, damaged, unsafe to load or fits no such model."""


# --- data ------------------------------------------------------------------------------------


class DatasetError(PassportizeError):
    """A data set is not where it was looked for, is damaged, or cannot be read."""


# --- demo ------------------------------------------------------------------------------------


class DemoFailed(PassportizeError):
    """The demo ran to its end but did not show what it claims."""
