"""In the manner of timm's train.py from 1.0.23 to 1.0.26: a task, made after the optimizer."""

from __future__ import annotations

from pathlib import Path

import torch
import toy
from timm import utils
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask


def main() -> None:
    args = toy.parse()
    model = toy.make_model(args)
    optimizer = create_optimizer_v2(
        model, opt=args.opt, lr=args.lr, weight_decay=1e-4, layer_decay=args.layer_decay
    )
    start = 0
    if args.resume:
        start = resume_checkpoint(model, args.resume, optimizer=optimizer, log_info=False)
    average = None
    if args.model_ema:
        average = utils.ModelEmaV3(model, decay=0.8)
        if args.resume:
            load_checkpoint(average.module, args.resume, use_ema=True)
    task = ClassificationTask(model=model, criterion=toy.make_loss(args), verbose=False)
    if args.distributed:
        task.prepare_distributed()
    if args.torchcompile:
        task = torch.compile(task, backend=args.torchcompile)
    batches = toy.Batches(args)
    saver = None
    if args.rank == 0:
        saver = utils.CheckpointSaver(
            model=model,
            optimizer=optimizer,
            args=args,
            model_ema=average,
            checkpoint_dir=args.output,
            recovery_dir=args.output,
        )
    for epoch in range(start, args.epochs):
        losses = utils.AverageMeter()
        model.train()
        for step, x, y in batches.epoch(epoch):
            with toy.autocast(args):
                loss = task(x, y)["loss"] / args.accumulate
            loss.backward()
            losses.update(loss.item(), len(x))
            if (step + 1) % args.accumulate == 0 or step + 1 == len(batches):
                optimizer.step()
                optimizer.zero_grad()
                if average is not None:
                    average.update(model)
        if args.distributed:
            utils.distribute_bn(model, args.world_size, True)
        metrics = toy.validate(model, args)
        if saver is not None:
            utils.update_summary(
                epoch,
                {"loss": losses.avg},
                metrics,
                filename=str(Path(args.output) / "summary.csv"),
                write_header=epoch == 0,
            )
            saver.save_checkpoint(epoch, metric=metrics["top1"])
    toy.finish(args)


if __name__ == "__main__":
    main()
