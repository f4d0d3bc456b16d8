"""How much is spent: in CI, in a night on two cores, at the scale of the papers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["BUDGETS", "Budget"]


@dataclass(frozen=True)
class Budget:
    """What every table of one size has in common.

    Attributes:
        name: As ``--budget`` takes it.
        width: What the channels of the networks are multiplied with.
        epochs: Of every training.
        images: Items to train on and to choose checkpoints by, together; None for all.
        test_images: Items to test on; None for all.
        points: Per cloud.
        batch: Items per step.
        learning_rate: Highest one of the cycle.
        seeds: How many trainings of each case; within a seed all schemes begin with the same
            weights and see the same batches.
        attack_epochs: Passes that attackers make over the data that they have.
    """

    name: str
    width: float
    epochs: int
    images: int | None
    test_images: int | None
    points: int
    batch: int
    learning_rate: float
    seeds: int
    attack_epochs: int

    @property
    def small(self) -> bool:
        """Whether it is for CI, with less of every table."""
        return self.name.startswith("smoke")

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        return asdict(self)

    def words(self) -> str:
        """In one sentence, for a page; how many seeds were measured, a table says itself."""
        images = "all images" if self.images is None else f"{self.images:,} images"
        tests = "all test images" if self.test_images is None else f"{self.test_images:,} to test"
        return (
            f"Budget `{self.name}`: width {self.width:g}, {_counted(self.epochs, 'epoch')}, "
            f"{images} (a tenth of them to choose the checkpoint), {tests}, batch {self.batch}; "
            f"attackers make {_counted(self.attack_epochs, 'pass', 'passes')} over their data"
        )


def _counted(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


BUDGETS = {
    "smoke": Budget("smoke", 0.125, 1, 192, 64, 32, 32, 0.05, 1, 1),
    "cpu": Budget("cpu", 0.25, 15, 20_000, None, 512, 64, 0.05, 3, 5),
    "gpu": Budget("gpu", 1.0, 200, None, None, 1024, 64, 0.05, 3, 100),
}
"""A minute on one core for all tables; a night on two cores; days on a GPU."""
