"""Pictures in folders, a pretrained checkpoint, averaged weights: train.py in short."""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from timm import utils
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from torch import nn
from torch.utils.data import DataLoader


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--output", default="output/train")
    parser.add_argument("--experiment", default="")
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--num-classes", type=int, default=None)
    parser.add_argument("--initial-checkpoint", default="")
    parser.add_argument("--img-size", type=int, default=None)
    parser.add_argument("--input-size", type=int, nargs=3, default=None)
    parser.add_argument("--crop-pct", type=float, default=None)
    parser.add_argument("--mean", type=float, nargs="+", default=None)
    parser.add_argument("--std", type=float, nargs="+", default=None)
    parser.add_argument("--interpolation", default="")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--model-ema", action="store_true")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def loader(args: argparse.Namespace, settings: dict, split: str) -> DataLoader:
    pictures = create_dataset("", root=args.data_dir, split=split)
    pictures.transform = create_transform(**settings, is_training=False)
    generator = torch.Generator().manual_seed(args.seed)
    return DataLoader(pictures, args.batch_size, shuffle=split == "train", generator=generator)


@torch.inference_mode()
def top1(model: nn.Module, data: DataLoader) -> float:
    model.eval()
    right = [(model(x).argmax(1) == y).double() for x, y in data]
    return 100 * torch.cat(right).mean().item()


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    folder = str(Path(args.output, args.experiment))
    Path(folder).mkdir(parents=True, exist_ok=True)
    model = timm.create_model(
        args.model, num_classes=args.num_classes, checkpoint_path=args.initial_checkpoint
    )
    settings = resolve_data_config(vars(args), model=model)
    train, val = loader(args, settings, "train"), loader(args, settings, "val")
    task = ClassificationTask(model, nn.CrossEntropyLoss())
    optimizer = create_optimizer_v2(model, opt="sgd", lr=args.lr, momentum=0.9)
    if args.model_ema:
        task.setup_ema(decay=0.5)
    saver = utils.CheckpointSaver(
        model=model,
        optimizer=optimizer,
        args=args,
        checkpoint_dir=folder,
        recovery_dir=folder,
        task=task,
    )
    for epoch in range(args.epochs):
        task.get_trainable_module().train()
        for x, y in train:
            optimizer.zero_grad()
            task(x, y)["loss"].backward()
            optimizer.step()
            task.update_ema()
        saver.save_checkpoint(epoch, metric=top1(task.get_eval_model(ema=args.model_ema), val))


if __name__ == "__main__":
    main()
