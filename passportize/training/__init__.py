"""Training both branches: the joint loss, a criterion for other loops, bits put in at the start."""

from passportize.training.criterion import JointCriterion, JointMeter
from passportize.training.embedding import Embedding, embed_signature
from passportize.training.loss import (
    JointLoss,
    joint_loss,
    passport_parameters,
    signature_accuracy,
    train_jointly,
)
from passportize.training.step import joint_step

__all__ = [
    "Embedding",
    "JointCriterion",
    "JointLoss",
    "JointMeter",
    "embed_signature",
    "joint_loss",
    "joint_step",
    "passport_parameters",
    "signature_accuracy",
    "train_jointly",
]
