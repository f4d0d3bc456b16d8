"""timm's own ``train.py``, unedited, with a passport.

    python -m passportize.integrations.timm --passport acme.passport train.py ARGS
    torchrun --nproc-per-node 8 -m passportize.integrations.timm --passport ... train.py ARGS

The model is passportized where the script makes its optimizer: after every conversion of the
model, before resume, EMA, compile and DDP. For scripts of one's own: :func:`prepare`, and
``PassportTask`` for those on timm's tasks.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from passportize.errors import BranchMisuse, MissingExtra
from passportize.integrations.patches import Patches
from passportize.integrations.timm.options import parse_options
from passportize.integrations.timm.session import Session

__all__ = ["launch"]


def launch(argv: Sequence[str] | None = None) -> None:
    """Run a training script of timm's kind with a passport.

    Names of timm and torch are replaced in this process while the script runs, and only then.

    Args:
        argv: Own options, the script, its arguments; ``sys.argv[1:]`` by default.

    Raises:
        SystemExit: The command line makes no sense, or the script ended itself.
        InvalidArgument: An option or a flag of the script cannot work with a passport.
        TrainingError: The script ran, but nothing was protected.
        MissingExtra: timm is not installed.
    """
    options = parse_options(sys.argv[1:] if argv is None else argv)
    try:
        import timm.optim  # noqa: F401
    except ImportError:
        raise MissingExtra(
            "timm is not installed, which its training script needs; run "
            "pip install 'passportize[timm]'"
        ) from None
    session = Session(
        options.passport,
        options.config,
        options.where,
        options.embed,
        options.calibration,
        options.arguments,
    )
    before = sys.argv, list(sys.path)
    sys.argv = [str(options.script), *options.arguments]
    sys.path.insert(0, str(options.script.resolve().parent))
    try:
        with Patches() as patches:
            session.install(patches)
            runpy.run_path(str(options.script), run_name="__main__")
    except SystemExit as end:
        # Some scripts end so when all went well; one that printed its help has nothing to show.
        if end.code in (None, 0) and not {"-h", "--help"} & set(options.arguments):
            session.finish(options.claim, options.claim_of, options.ema)
        raise
    except TypeError as error:
        if "JointOutput" in str(error):
            raise BranchMisuse(
                f"the script gave the model's training output to something that does not know "
                f"the private branch ({error}); wrap its loss in passportize.training.criterion."
                "JointCriterion, and use output.public for anything else"
            ) from error
        raise
    finally:
        sys.argv, sys.path[:] = before
    session.finish(options.claim, options.claim_of, options.ema)
