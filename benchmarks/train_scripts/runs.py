"""What ``train_scripts.py`` runs: one entry for each kind of run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

MAIN = "main"
OLD = ("v1.0.9", "v1.0.22", "v1.0.26", "v1.0.28")
VERSIONS = (*OLD, MAIN)

COMMON = (
    *("--data-dir", "data", "--model", "resnet10t", "--num-classes", "3", "--img-size", "32"),
    *("-b", "8", "--epochs", "1", "--lr", "0.05", "--opt", "sgd", "--device", "cpu", "-j", "1"),
    *("--aa", "", "--warmup-epochs", "0", "--cooldown-epochs", "0", "--output", "output"),
)
AVERAGED = ("--model-ema",)
CLIPPED = ("--clip-grad", "1.0")
HARD = ("--amp", "--amp-dtype", "bfloat16", *AVERAGED, "--grad-accum-steps", "2", *CLIPPED)
COMPILED = ("--torchcompile", "aot_eager")
# Nothing random but the order of the images, which a sampler for several processes draws from the
# number of the epoch; that of one process goes on with a generator that no checkpoint holds.
REPEATABLE = ("--no-aug",)
NAFLEX = (
    *("--model", "naflexvit_base_patch16_gap", "--naflex-loader", "--naflex-max-seq-len", "36"),
    *("--naflex-train-seq-lens", "16", "36", "--lr", "0.001"),
    *("--model-kwargs", "depth=1", "embed_dim=64", "num_heads=2"),
)


class Run(NamedTuple):
    """One kind of run.

    Attributes:
        name: Its name.
        versions: The tags it is run with.
        arguments: Of the script, behind ``COMMON``.
        own: Options of the launcher.
        processes: How many; more than one under torchrun and ``ddp_on_cpu.py``.
        then: Arguments of a second run that resumes the first, if there is one.
        halves: Two epochs at once, one, and the second resumed from it, to compare.
        refused: What the refusal says; it must end before anything starts.
        passport: False for a plain control without the launcher.
        prefetcher: Leave timm's prefetcher on.
        tools: Give the result to the version's validate.py and clean_checkpoint.py.
    """

    name: str
    versions: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    processes: int = 1
    then: tuple[str, ...] | None = None
    halves: bool = False
    refused: str = ""
    passport: bool = True
    prefetcher: bool = False
    tools: bool = False


NEWEST = (MAIN,)
THREE = ("v1.0.22", "v1.0.26", MAIN)
RUNS = (
    Run("ema-resumed", ("v1.0.9",), AVERAGED, then=("--epochs", "2"), prefetcher=True, tools=True),
    Run("hard", OLD[1:], HARD, tools=True),
    Run("hard-resumed", OLD[1:3], HARD, then=("--epochs", "2", *AVERAGED)),
    Run("hard-ddp", OLD[1:], HARD, processes=2),
    Run("compiled", OLD[1:3], COMPILED),
    Run(
        "ema-resumed",
        NEWEST,
        ("--epochs", "2", *AVERAGED),
        then=("--epochs", "3"),
        tools=True,
    ),
    Run("ema-not-embedded", NEWEST, ("--epochs", "2", *AVERAGED), ("--no-embed",)),
    Run("hard-not-embedded", NEWEST, HARD, ("--no-embed",)),
    Run("warmed-up", THREE, ("--epochs", "4", "--warmup-epochs", "1", *AVERAGED)),
    Run("longer", NEWEST, ("--epochs", "8", *AVERAGED)),
    Run("hard-mixed", NEWEST, (*HARD, "--mixup", "0.2", "--cutmix", "0.5"), tools=True),
    Run("hard-recomputed-ddp", NEWEST, (*HARD, "--grad-checkpointing"), processes=2),
    Run("compiled-ema", NEWEST, (*COMPILED, *AVERAGED)),
    Run("compiled-recomputed-ddp", NEWEST, (*COMPILED, "--grad-checkpointing"), processes=2),
    Run(
        "compiled-recomputed-ddp",
        NEWEST,
        (*COMPILED, "--grad-checkpointing"),
        processes=2,
        passport=False,
    ),
    Run(
        "jsd",
        NEWEST,
        ("--jsd-loss", "--aug-splits", "3", "--aa", "rand-m9-mstd0.5-inc1", "--lr", "0.001"),
        prefetcher=True,
    ),
    Run(
        "bce-agc",
        NEWEST,
        ("--bce-loss", "--channels-last", "--clip-grad", "0.1", "--clip-mode", "agc"),
    ),
    Run("bfloat16", NEWEST, ("--model-dtype", "bfloat16")),
    Run("muon", NEWEST, ("--opt", "muon", "--lr", "0.01")),
    Run("layer-decay", NEWEST, ("--layer-decay", "0.7", "--opt", "adamw", "--lr", "0.001")),
    Run("paper-hard", NEWEST, HARD, ("--preset", "paper", "--set", "private_every=2")),
    Run("paper-ddp", NEWEST, AVERAGED, ("--preset", "paper"), processes=2),
    Run("signature", NEWEST, (), ("--preset", "signature", "--where", "layer[34]*")),
    Run("layer4-ddp", NEWEST, AVERAGED, ("--where", "layer4*"), processes=2),
    Run(
        "vit-recomputed",
        NEWEST,
        (
            *("--model", "vit_tiny_patch16_224", "--model-kwargs", "img_size=32"),
            *("--opt", "adamw", "--lr", "0.001", "--grad-checkpointing"),
        ),
    ),
    Run("efficientnet", NEWEST, ("--model", "efficientnet_b0", "--lr", "0.01")),
    Run("naflex", NEWEST, NAFLEX, prefetcher=True),
    *(
        Run(
            name,
            versions,
            (*REPEATABLE, *arguments),
            processes=processes,
            halves=True,
            passport=own,
        )
        for name, versions, arguments, processes in (
            ("halves-ema-ddp", THREE, AVERAGED, 2),
            ("halves-hard-ddp", THREE, HARD, 2),
            ("halves-one-process", NEWEST, AVERAGED, 1),
        )
        for own in (False, True)
    ),
    Run("torchscript", THREE, ("--torchscript",), refused="--torchscript"),
    Run("split-bn", THREE, ("--split-bn", "--aug-splits", "3"), refused="--split-bn"),
    Run(
        "feature-distillation",
        NEWEST,
        ("--kd-model-name", "resnet18", "--kd-distill-type", "feature"),
        refused="--kd-distill-type feature",
    ),
)


def stages(run: Run) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Experiments of a run, and the arguments that only they have."""
    if run.halves:
        yield "whole", ("--epochs", "2")
        yield "first", ("--epochs", "1")
        yield "second", ("--epochs", "2", "--resume", "output/first/last.pth.tar")
    else:
        yield "once", ()
        if run.then is not None:
            yield "then", (*run.then, "--resume", "output/once/last.pth.tar")


def command(run: Run, version: str, stage: str, further: tuple[str, ...]) -> list[str]:
    """The command line of one stage; ``python`` stands for this interpreter."""
    prefetcher = () if run.prefetcher else ("--no-prefetcher",)
    script = (f"{version}/train.py", *COMMON, *prefetcher, "--experiment", stage)
    # Checks are of the last checkpoint and its live weights.
    claim = ("--claim", f"{stage}.claim.safetensors", "--claim-of", "last", "--no-ema")
    launcher = ("--passport", "acme.passport", *claim, *run.own)
    target = ("passportize.integrations.timm", *launcher) if run.passport else ()
    line = (*target, *script, *run.arguments, *further)
    if run.processes > 1:
        ranks = ("--standalone", "--nproc-per-node", str(run.processes))
        return ["python", "-m", "torch.distributed.run", *ranks, "ddp_on_cpu.py", *line]
    return ["python", *(("-m",) if run.passport else ()), *line]
