"""What integrations of training frameworks do to the user's network, and undo at the end."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from passportize.config import PassportConfig
from passportize.errors import CheckpointError, InvalidArgument
from passportize.integrations.branch_state import BranchRecord, join_state
from passportize.layers.model import switch_of
from passportize.passport.passport import Passport
from passportize.release.claim import Claim
from passportize.release.claim_file import check_claimable, save_claim
from passportize.release.preprocessing import Preprocessing
from passportize.surgery.selection import Where
from passportize.surgery.surgery import passportize, unpassportize
from passportize.training.criterion import JointMeter
from passportize.training.embedding import embed_signature
from passportize.training.loss import signature_accuracy

__all__ = ["Protection"]

_logger = logging.getLogger(__name__)


class Protection:
    """The passport of a training run, and how its network is marked.

    Args:
        passport: The owner's.
        claim: Where to write the claim to; None to write none.
        config: A preset; keyed by default. What it says of ``passes`` counts for ``"separate"``
            alone: then the private branch gets the batch whole.
        where: Which norms to bind.
        embed: Put the signature into the weights before the training starts.
        calibration: Batches of inputs to do so with, for weights that are trained already.
        example_inputs: What the network is called with; models of timm need none.
        preprocessing: How pictures are prepared, to be recorded in the claim.
        overwrite: Replace an existing claim.
    """

    def __init__(
        self,
        passport: Passport,
        *,
        claim: str | os.PathLike[str] | None = None,
        config: PassportConfig | None = None,
        where: Where | None = None,
        embed: bool = True,
        calibration: Iterable[Any] | None = None,
        example_inputs: Any = None,
        preprocessing: Preprocessing | None = None,
        overwrite: bool = False,
    ) -> None:
        if not isinstance(passport, Passport):
            raise InvalidArgument(
                f"expected a Passport, got {type(passport).__name__}; make one with "
                "Passport.generate(owner=...), or load it with Passport.load(path)"
            )
        self.path = claim
        self.meter = JointMeter()
        self._passport = passport
        self._config = config
        self._where = where
        self._embed = embed
        self._calibration = calibration
        self.example_inputs = example_inputs
        self._preprocessing = preprocessing
        self._overwrite = overwrite

    def put_in(self, network: nn.Module, writes: bool, example_inputs: Any = None) -> None:
        """Passportize a network in place, and put the signature in; all of it or nothing.

        Args:
            network: The plain network.
            writes: Whether this process will write the claim.
            example_inputs: What it is called with, where the owner did not say so.

        Raises:
            SurgeryError: It cannot be passportized.
            InvalidArgument: It is compiled.
            ClaimFileError: The claim could not be written at the end.
        """
        if any(module._compiled_call_impl is not None for module in network.modules()):
            raise InvalidArgument(
                f"{type(network).__name__} is compiled, and a step that is taken through one "
                "branch after the other cannot be; leave compile() out, or write the loop yourself "
                "with passportize.joint_loss"
            )
        if self.example_inputs is not None:
            example_inputs = self.example_inputs
        self.meter = JointMeter()
        passportize(
            network,
            self._passport,
            config=self._config,
            where=self._where,
            example_inputs=example_inputs,
        )
        try:
            if self.path is not None and writes:
                check_claimable(network, self.path, overwrite=self._overwrite)
            if self._embed and signature_accuracy(network) < 1:
                done = embed_signature(network, calibration=self._calibration)
                _logger.info("Passport: %s", done)
        except BaseException:
            unpassportize(network)
            raise

    def metrics(self, network: nn.Module) -> dict[str, float]:
        """Percent of the bits that are in, and means of the loss's parts since the last call."""
        return {"signature": 100 * signature_accuracy(network), **self.meter.read()}

    def restore(self, network: nn.Module, branch: Mapping[str, Any] | None) -> None:
        """Load the private tensors of a checkpoint into a passportized network.

        Args:
            network: The network.
            branch: What :func:`~passportize.integrations.branch_state.part_state` gave.

        Raises:
            CheckpointError: The checkpoint was made without passports, or with other settings.
            WrongPassport: It was made with another passport.
        """
        tensors = join_state(network, {}, branch)
        if branch is None:
            return
        kept = BranchRecord.from_json(str(branch["record"])).marking.layout
        own = switch_of(network).layout
        unexpected = network.load_state_dict(tensors, strict=False).unexpected_keys
        if unexpected or own is None or kept.digest() != own.digest():
            raise CheckpointError(
                "the checkpoint to resume was made with other settings: other norms are bound in "
                "it. Give config= and where= of its run"
            )

    def claim_on(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor] | None = None,
        branch: Mapping[str, Any] | None = None,
    ) -> Claim:
        """Write the claim on a passportized network, or on the weights of a checkpoint of it.

        Args:
            network: The network; it is left as it is.
            weights: The checkpoint's weights by their names in the network; None: those that the
                network has.
            branch: What the checkpoint holds of the private branch; None where that is nothing.

        Raises:
            ClaimError: The claim cannot be made or written.

        Warns:
            MissingBitsWarning: The weights do not carry the signature.
        """
        assert self.path is not None
        claimed = network
        if weights is not None:
            claimed = copy.deepcopy(network)
            joined = dict(weights) if branch is None else join_state(claimed, weights, branch)
            claimed.load_state_dict(joined)
        claim = save_claim(
            claimed, self.path, preprocessing=self._preprocessing, overwrite=self._overwrite
        )
        switch_of(network).saved = True
        _logger.info(
            "Passport: %s is the claim on weights that carry %.2f %% of %d bits, digest %s",
            self.path,
            100 * signature_accuracy(claimed),
            claim.bits,
            claim.digest(),
        )
        return claim
