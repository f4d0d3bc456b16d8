"""In the manner of timm's train.py up to 1.0.22: the script calls model and loss itself."""

from __future__ import annotations

from pathlib import Path

import torch
import toy
from timm import utils
from timm.models import load_checkpoint, model_parameters, resume_checkpoint
from timm.optim import create_optimizer_v2
from torch.nn.parallel import DistributedDataParallel


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
    if args.distributed:
        model = DistributedDataParallel(model)
    if args.torchcompile:
        model = torch.compile(model, backend=args.torchcompile)
    batches = toy.Batches(args)
    loss_fn = toy.make_loss(args)
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
            last = (step + 1) % args.accumulate == 0 or step + 1 == len(batches)
            with toy.autocast(args):
                loss = loss_fn(model(x), y) / args.accumulate
            loss.backward()
            losses.update(loss.item(), len(x))
            if last:
                if args.clip_mode:
                    utils.dispatch_clip_grad(
                        model_parameters(model, exclude_head="agc" in args.clip_mode),
                        value=0.1,
                        mode=args.clip_mode,
                    )
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
