"""What the toy training scripts share: arguments, data, the process group, validation."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn

CLASSES = 4
SIZE = 48


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--resume", default="")
    parser.add_argument("--opt", default="sgd")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--layer-decay", type=float, default=None)
    parser.add_argument("--loss", default="ce")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--model-ema", action="store_true")
    parser.add_argument("--grad-checkpointing", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--clip-mode", default="")
    parser.add_argument("--torchcompile", default="")
    parser.add_argument("--kill-at", type=int, default=-1)
    args = parser.parse_args()
    args.world_size = int(os.environ.get("WORLD_SIZE", "1"))
    args.rank = int(os.environ.get("RANK", "0"))
    args.distributed = args.world_size > 1
    Path(args.output).mkdir(parents=True, exist_ok=True)
    if args.distributed:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{Path(args.output).resolve()}/store",
            rank=args.rank,
            world_size=args.world_size,
        )
    # As train.py: the processes differ until DDP sends the first one's weights around.
    torch.manual_seed(42 + args.rank)
    return args


def make_model(args: argparse.Namespace) -> nn.Module:
    model = timm.create_model(args.model, num_classes=CLASSES)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(True)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def make_loss(args: argparse.Namespace) -> nn.Module:
    from timm import loss

    return {
        "ce": nn.CrossEntropyLoss,
        "smooth": loss.LabelSmoothingCrossEntropy,
        "bce": loss.BinaryCrossEntropy,
        "jsd": lambda: loss.JsdCrossEntropy(num_splits=2, alpha=1.0),
    }[args.loss]()


class Batches:
    """The same batches in every run; a position to be killed at."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    def __len__(self) -> int:
        return self.args.steps

    def epoch(self, epoch: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        args = self.args
        for step in range(args.steps):
            if epoch * args.steps + step == args.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seed = (epoch * args.steps + step) * args.world_size + args.rank
            generator = torch.Generator().manual_seed(seed)
            y = torch.randint(0, CLASSES, (args.batch,), generator=generator)
            x = torch.randn(args.batch, 3, SIZE, SIZE, generator=generator)
            x += y.view(-1, 1, 1, 1) * torch.linspace(-1, 1, SIZE)
            if args.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            yield step, x, y


def autocast(args: argparse.Namespace) -> object:
    return torch.autocast("cpu", dtype=torch.bfloat16) if args.amp else nullcontext()


@torch.inference_mode()
def validate(model: nn.Module, args: argparse.Namespace) -> dict[str, float]:
    model.eval()
    generator = torch.Generator().manual_seed(999)
    y = torch.randint(0, CLASSES, (8,), generator=generator)
    x = torch.randn(8, 3, SIZE, SIZE, generator=generator)
    x += y.view(-1, 1, 1, 1) * torch.linspace(-1, 1, SIZE)
    output = model(x)
    return {
        "loss": nn.functional.cross_entropy(output, y).item(),
        "top1": 100 * (output.argmax(1) == y).double().mean().item(),
    }


def finish(args: argparse.Namespace) -> None:
    if args.distributed:
        dist.barrier()
        dist.destroy_process_group()
