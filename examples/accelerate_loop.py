"""A loop of Hugging Face accelerate with a passport, on the digits inside scikit-learn.

pip install 'passportize[demo,accelerate]'
accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from torch import nn

import passportize as pp
from passportize.data.digits import load_digits_images
from passportize.release.checkpoint import save_weights
from passportize.training import JointCriterion, train_jointly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--mixed-precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--out", type=Path, required=True, help="folder of what is written")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        gradient_accumulation_steps=2, mixed_precision=options.mixed_precision
    )
    secret = options.out / "owner.passport"
    if accelerator.is_main_process and not secret.exists():
        pp.Passport.generate("Example").save(secret)
    accelerator.wait_for_everyone()
    # Every process derives the same branch from the file; nothing of it is sent around.
    passport = pp.Passport.load(secret)

    model = timm.create_model(
        "resnet10t", in_chans=1, num_classes=10, stem_width=16, channels=(16, 32, 64, 128)
    )
    # Before the optimizer and before accelerator.prepare.
    model = pp.passportize(model, passport)
    pp.embed_signature(model)
    model = train_jointly(model)
    criterion = JointCriterion(nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images, labels = load_digits_images("train")
    data = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    for epoch in range(options.epochs):
        for batch, targets in loader:
            with accelerator.accumulate(model):
                accelerator.backward(criterion(model(batch), targets))
                optimizer.step()
                optimizer.zero_grad()
        parts = ", ".join(f"{name} {value:.3f}" for name, value in criterion.meter.read().items())
        accelerator.print(f"epoch {epoch}: {parts}")

    plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if accelerator.is_main_process:
        print(f"{pp.signature_accuracy(plain):.2%} of the bits are in")
        claim = pp.save_claim(plain, options.out / "claim.safetensors", overwrite=True)
        print(f"publish before the release: {claim.digest()}")
        save_weights(options.out / "released.safetensors", pp.unpassportize(plain).state_dict())
    # A process that leaves while another still writes can keep both from ending.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
