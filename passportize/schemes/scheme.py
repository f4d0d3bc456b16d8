"""What the bench needs of a protection: to put a mark in, to train with it, and to judge.

A scheme is one object of a subclass of :class:`Scheme`. It makes a :class:`Protection` of a plain
model, which says what to add to the loss; :meth:`Protection.release` gives the plain model and what
the owner keeps; :meth:`Scheme.verify` says what a claim is worth in a suspect.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from passportize.passport.passport import Passport
from passportize.schemes.brought import BroughtBranch, Factors

__all__ = ["Finding", "Protection", "Release", "Scheme"]


@dataclass(frozen=True)
class Finding:
    """What a scheme's own verification says of one claim and one suspect.

    Attributes:
        accepted: Whether a judge who follows the scheme would accept; None if it could not be
            judged.
        matched: Signature bits that match.
        total: Signature bits that were read; 0 where the scheme has none.
        strength: ``-log2`` of the probability that a stranger matches so well, in bits.
        public_accuracy: Top-1 accuracy of the suspect in percent; None if not measured.
        private_accuracy: The same of the private branch; None without one, or if not measured.
        reason: The finding in words.
    """

    accepted: bool | None
    matched: int
    total: int
    strength: float
    public_accuracy: float | None = None
    private_accuracy: float | None = None
    reason: str = ""

    @property
    def bit_accuracy(self) -> float | None:
        """Signature detection rate: the share of bits that match, between 0 and 1."""
        return self.matched / self.total if self.total else None


class Protection(ABC):
    """One model while it is being protected.

    Attributes:
        model: The model to train. It is the one that was given, changed or not.
    """

    model: nn.Module

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer is to train: by default all parameters of the model."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @abstractmethod
    def loss(self, inputs: Any, targets: Any, criterion: Callable[[Any, Any], Tensor]) -> Tensor:
        """The loss of one training step, a scalar: the task's and what the mark adds.

        Args:
            inputs: What the model is called with: a tensor ``[batch, ...]``, a tuple of positional
                or a dict of keyword arguments.
            targets: What the criterion takes.
            criterion: ``criterion(output, targets) -> scalar``.
        """

    @abstractmethod
    def release(self) -> Release:
        """The plain model, in evaluation mode, and what the owner keeps. Ends the protection."""


@dataclass(frozen=True)
class Release:
    """A released model, and what its owner has kept.

    Attributes:
        scheme: By which it was protected.
        model: The plain model; not to be changed, see :meth:`copy`.
        passport: The owner's.
        claim: Whatever :meth:`Scheme.verify` of this scheme takes.
    """

    scheme: Scheme
    model: nn.Module
    passport: Passport
    claim: Any

    def copy(self) -> nn.Module:
        """A copy of the released model, for somebody to change."""
        return copy.deepcopy(self.model)

    def verify(self, suspect: nn.Module, loader: Iterable[Any] | None = None) -> Finding:
        """What the owner's claim is worth in a suspect, with the released weights at hand."""
        return self.scheme.verify(suspect, self.passport, self.claim, loader, released=self.copy())


class Scheme(ABC):
    """A way to protect models.

    Attributes:
        name: What it is registered by.
        source: Where it was published.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""

    @abstractmethod
    def protect(
        self, model: nn.Module, passport: Passport, example_inputs: Any = None
    ) -> Protection:
        """Begin to protect a plain model.

        Args:
            model: The model; it may be changed in place until the release.
            passport: The owner's: the only source of secrets, so that runs can be repeated.
            example_inputs: As in :func:`passportize.plan`.

        Raises:
            PassportizeError: The model is none that the scheme can protect.
        """

    @abstractmethod
    def verify(
        self,
        suspect: nn.Module,
        passport: Passport,
        claim: Any,
        loader: Iterable[Any] | None = None,
        released: nn.Module | None = None,
    ) -> Finding:
        """Judge a claim as the scheme was published; the suspect is left as it was.

        Args:
            suspect: A plain model, perhaps of another architecture than the claim's: what is
                missing is not counted as a match.
            passport: The claimant's.
            claim: From :meth:`Protection.release` or :meth:`forge`.
            loader: Labelled batches, for schemes that compare accuracies; read several times.
            released: The weights that were released, for schemes that make use of them.
        """

    @abstractmethod
    def forge(
        self,
        model: nn.Module,
        passport: Passport,
        factors: Factors | None = None,
        example_inputs: Any = None,
    ) -> Any:
        """The best claim on a model that its maker has neither trained nor changed.

        Here everything that a scheme leaves to the claimant (a bottleneck, passports, a projection,
        the signature itself) is chosen to pass the scheme's tests. A scheme that leaves nothing
        gives the claim that follows from the passport alone.

        Args:
            model: Somebody else's released model; it is only read.
            passport: The forger's.
            factors: What the forged private branch should multiply and add, by name of the norm,
                where the scheme has such a branch and leaves that to the claimant; by default the
                released model's own.
            example_inputs: As in :func:`passportize.plan`.

        Returns:
            What :meth:`verify` takes as ``claim`` along with ``passport``.
        """

    def brought(
        self,
        model: nn.Module,
        passport: Passport,
        claim: Any = None,
        example_inputs: Any = None,
    ) -> BroughtBranch | None:
        """A private branch whose free parts a claimant may train before bringing it.

        Args:
            model: A released model; it is only read.
            passport: Source of passports and bits: the forger's, or the owner's where it leaked.
            claim: The owner's claim, where it has become known.
            example_inputs: As in :func:`passportize.plan`.

        Returns:
            None, as here, where a scheme lets claimants bring no tensors; :meth:`verify` need not
            take one then.
        """
        return None

    def private_factors(
        self, model: nn.Module, passport: Passport, example_inputs: Any = None
    ) -> Factors | None:
        """Scale and shift of the private branch that a passport alone gives; None without one.

        Args:
            model: A released model; it is only read.
            passport: Anybody's.
            example_inputs: As in :func:`passportize.plan`.
        """
        branch = self.brought(model, passport, None, example_inputs)
        return None if branch is None else branch.kept().factors(model)
