"""In the manner of timm's train.py since 1.0.27: the task is made first and owns the state."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import toy
from timm import utils
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint


def main() -> None:
    args = toy.parse()
    task = ClassificationTask(
        model=toy.make_model(args), criterion=toy.make_loss(args), verbose=False
    )
    model = task.get_trainable_module()
    optimizer = create_optimizer_v2(
        model, opt=args.opt, lr=args.lr, weight_decay=1e-4, layer_decay=args.layer_decay
    )
    start = 0
    if args.resume:
        start = resume_task_checkpoint(task, args.resume, optimizer=optimizer, log_info=False)
    if args.model_ema:
        task.setup_ema(decay=0.8)
        if args.resume:
            load_task_ema_checkpoint(task, args.resume)
    if args.torchcompile:
        task.compile(backend=args.torchcompile)
    if args.distributed:
        task.prepare_distributed()
    model = task.get_trainable_module()
    batches = toy.Batches(args)
    saver = None
    if args.rank == 0:
        saver = utils.CheckpointSaver(
            model=model,
            optimizer=optimizer,
            args=args,
            checkpoint_dir=args.output,
            recovery_dir=args.output,
            task=task,
        )
    for epoch in range(start, args.epochs):
        losses = utils.AverageMeter()
        model.train()
        for step, x, y in batches.epoch(epoch):
            last = (step + 1) % args.accumulate == 0 or step + 1 == len(batches)
            with nullcontext() if last else task.no_sync():
                with toy.autocast(args):
                    result = task(x, y)
                    loss = result["loss"] / args.accumulate
                loss.backward()
            assert result["output"].shape == (len(x), toy.CLASSES)
            losses.update(loss.item(), len(x))
            if last:
                if args.clip_mode:
                    utils.dispatch_clip_grad(
                        task.get_clip_parameters(exclude_head="agc" in args.clip_mode),
                        value=0.1,
                        mode=args.clip_mode,
                    )
                optimizer.step()
                optimizer.zero_grad()
                task.update_ema()
        if args.distributed:
            utils.distribute_bn(model, args.world_size, True)
        metrics = toy.validate(task.get_eval_model(), args)
        if args.model_ema:
            metrics = toy.validate(task.get_eval_model(ema=True), args)
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
