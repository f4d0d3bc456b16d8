"""A PointNet that carries a passport: train, release, have it fine-tuned by a thief, verify.

    pip install -e '.[plots]'
    python examples/pointnet.py                       # generated shapes, about two minutes
    python examples/pointnet.py --root kicad-packages3d_6.0.10-1_all.deb    # real solids, longer

Writes ``out/pointnet/``: the passport (keep it secret), the claim, the released weights and a
picture of a test cloud of each class (of 15 at most) with what the released model makes of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from pointnet_model import PointNet
from torch import Tensor, nn

import passportize as pp
from passportize.data.kicad import KiCadShapes
from passportize.data.shapes import SHAPE_CLASSES, generate_shapes
from passportize.verification.triggers import check_triggers, cloud_triggers

BATCH = 32
Part = tuple[Tensor, Tensor]


def load(root: str | None, points: int) -> tuple[Part, Part, Part, tuple[str, ...]]:
    """Clouds to train on, clouds that the thief has, clouds to test on, names of the classes."""
    if root is None:
        train, theirs, test = (
            generate_shapes(size, points, seed=seed) for seed, size in enumerate((80, 40, 20))
        )
        return train, theirs, test, SHAPE_CLASSES
    shapes = KiCadShapes.load(root, points=points, at_most=60, processes=2)
    clouds, labels = shapes.split("train")
    half = torch.arange(len(clouds)) % 3 > 0
    ours, theirs = (clouds[half], labels[half]), (clouds[~half], labels[~half])
    return ours, theirs, shapes.split("test"), shapes.classes


def train(model: nn.Module, data: Part, epochs: int, *, protected: bool, lr: float = 2e-3) -> None:
    """Adam with a one-cycle schedule; with a passport one call replaces the loss."""
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data), BATCH, shuffle=True, drop_last=True
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=epochs * len(loader)
    )
    model.train()
    for epoch in range(epochs):
        for x, y in loader:
            if protected:
                loss = pp.joint_loss(model, x, y, F.cross_entropy).total
            else:
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"  epoch {epoch + 1}/{epochs}, loss {loss.item():.2f}", flush=True)
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Part) -> float:
    """Share of clouds that are classified right."""
    guesses = torch.cat([model(part).argmax(1) for part in data[0].split(128)])
    return float((guesses == data[1]).float().mean())


def picture(model: nn.Module, test: Part, classes: tuple[str, ...], path: Path) -> None:
    """A test cloud of each class, titled with the answer of the model: green where it is right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = test[1].tolist()
    shown = [labels.index(label) for label in sorted(set(labels))][:15]
    with torch.no_grad():
        guesses = model(test[0][shown]).argmax(1).tolist()
    figure = pyplot.figure(figsize=(12, 8))
    for place, (index, guess) in enumerate(zip(shown, guesses, strict=True), start=1):
        # The same box for all, with axes of one scale, or a ball would not be round.
        axes = figure.add_subplot(3, 5, place, projection="3d")
        axes.set_box_aspect((1, 1, 1), zoom=1.2)
        axes.scatter(*test[0][index].T.numpy(), s=8, c=test[0][index][:, 2], cmap="viridis")
        right = guess == labels[index]
        title = classes[guess] if right else f"{classes[guess]}\n(is {classes[labels[index]]})"
        axes.set_title(title, color="green" if right else "red", fontsize=10)
        axes.set_axis_off()
        axes.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
    figure.suptitle(
        f"What the released model says of test clouds ({accuracy(model, test):.1%} right; "
        "green: right, red: wrong)"
    )
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.89, wspace=0, hspace=0.16)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """The whole way."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", help="kicad-packages3d .deb or a folder with its *.3dshapes")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--points", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("out/pointnet"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    ours, theirs, test, classes = load(arguments.root, arguments.points)

    print(f"1. The owner trains on {len(ours[0])} clouds of {len(classes)} classes.")
    passport = pp.Passport.generate(owner="Example Vision", contact="legal@example.org")
    passport.save(arguments.out / "example.passport", overwrite=True)
    triggers = cloud_triggers(passport, 40, arguments.points, len(classes))
    # Ten copies each, or forty clouds would hardly be seen.
    data = (
        torch.cat([ours[0], triggers.inputs.repeat(10, 1, 1)]),
        torch.cat([ours[1], triggers.labels.repeat(10)]),
    )
    model = PointNet(len(classes), width=128)
    # Behind the pooling a row is a cloud: whole batches give the private statistics enough rows.
    config = pp.PassportConfig.keyed(private_fraction=1.0)
    pp.passportize(model, passport, config=config, example_inputs=ours[0][:2])
    print(f"signature put in: {pp.embed_signature(model)}")
    train(model, data, arguments.epochs, protected=True)
    with pp.branch(model, "private"):
        private = accuracy(model, test)
    print(f"  public {accuracy(model, test):.1%}, private {private:.1%} of the test clouds")

    print("2. The owner saves a claim, takes the passport out and releases the plain model.")
    claim = arguments.out / "example.claim.safetensors"
    print(f"  digest to publish first: {pp.save_claim(model, claim, overwrite=True).digest()}")
    model = pp.unpassportize(model)
    torch.save(model.state_dict(), arguments.out / "released.pt")
    picture(model, test, classes, arguments.out / "released.png")

    print(f"3. A thief fine-tunes it on {len(theirs[0])} other clouds.")
    suspect = PointNet(len(classes), width=128)
    suspect.load_state_dict(torch.load(arguments.out / "released.pt", weights_only=True))
    train(suspect, theirs, max(2, arguments.epochs // 4), protected=False, lr=1e-3)
    print(f"  {accuracy(suspect, test):.1%} of the test clouds")

    print("4. The owner looks at the suspect's weights, and then only at its answers.")
    pairs = list(zip(test[0].split(128), test[1].split(128), strict=True))
    print(pp.verify(suspect, passport, claim, pairs))
    print(check_triggers(suspect, triggers))
    print(f"Pictures, claim and weights are in {arguments.out}.")


if __name__ == "__main__":
    main()
