"""Is training with passports stable wherever plain training is?

The demo's recipe at learning rates from harmless to too high, with SGD (momentum 0.9) and AdamW,
without passports and with each preset: last losses, accuracies, and whether anything was NaN.

    python -m benchmarks.training.stability      # writes benchmarks/results/stability.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading
from passportize.data.images import digits_data
from passportize.demo.recipe import accuracy, build_model, train
from passportize.utils.files import write_atomically

RATES = {"sgd": (0.01, 0.05, 0.1, 0.2, 0.4), "adamw": (1e-4, 1e-3, 1e-2)}
PRESETS = {
    "plain": None,
    "keyed": pp.PassportConfig.keyed(),
    "paper": pp.PassportConfig.paper(),
    "signature": pp.PassportConfig.signature(),
}


def _place(row: dict[str, Any]) -> tuple[int, float, int]:
    return (
        list(RATES).index(row["optimizer"]),
        row["lr"],
        list(PRESETS).index(row["preset"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "stability.json")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    data = digits_data()
    test = (data.test_images, data.test_labels)
    passport = pp.Passport.generate("Acme", date="2026-01-01", secret=bytes(32))
    record: dict[str, Any] = {
        **heading(
            "NaN or not, over learning rates, optimizers and presets",
            "benchmarks.training.stability",
            f"{arguments.threads} thread(s)",
        ),
        "epochs": arguments.epochs,
        "rows": [],
    }
    if arguments.resume and arguments.out.exists():
        record["rows"] = json.loads(arguments.out.read_text())["rows"]
    done = {(row["optimizer"], row["lr"], row["preset"]) for row in record["rows"]}
    worse = []
    for optimizer, rates in RATES.items():
        for lr in rates:
            plain_finite = True
            for preset, config in PRESETS.items():
                if (optimizer, lr, preset) in done:
                    continue
                model = build_model(0)
                if config is not None:
                    pp.passportize(model, passport, config=config)
                    if preset != "paper":  # which trains as published
                        pp.embed_signature(model)
                history = train(
                    model, data, epochs=arguments.epochs, lr=lr, optimizer=optimizer, seed=0
                )
                finite = history.finite and all(
                    bool(torch.isfinite(value).all()) for value in model.state_dict().values()
                )
                row: dict[str, Any] = {
                    "optimizer": optimizer,
                    "lr": lr,
                    "preset": preset,
                    "finite": finite,
                    "public_loss": round(history.public[-1], 4),
                    "public": round(accuracy(model, *test), 2),
                }
                if config is not None:
                    row["bits"] = round(pp.signature_accuracy(model), 4)
                    if config.has_private_pass:
                        row["private"] = round(accuracy(model, *test, branch="private"), 2)
                    if plain_finite and not finite:
                        worse.append((optimizer, lr, preset))
                else:
                    plain_finite = finite
                record["rows"].append(row)
                record["rows"].sort(key=_place)
                print(row, flush=True)
                text = json.dumps(record, indent=1) + "\n"
                write_atomically(arguments.out, text.encode(), overwrite=True)
    print("not finite where plain training is:", worse or "nothing")


if __name__ == "__main__":
    main()
