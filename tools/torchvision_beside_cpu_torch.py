"""Let a CUDA build of torchvision be imported beside a CPU build of torch, in this venv only.

The torchvision on PyPI registers fake kernels for operators that its compiled library defines.
Beside a CPU build of torch that library cannot be loaded, and the import stops at "operator
torchvision::nms does not exist". timm needs torchvision only for image transforms, so where the
import fails this script leaves a start-up file in the venv that declares the two operators just
before torchvision is imported. Where the import works it does nothing. The package never does this.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

FINDER = '''\
"""Declares two torchvision operators before torchvision is imported; see passportize/tools."""
import importlib.abc
import importlib.machinery
import sys


class _DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        sys.modules[__name__].library = library
        return importlib.machinery.PathFinder.find_spec(name, path)


sys.meta_path.insert(0, _DeclareOperators())
'''


def main() -> int:
    """Check the import; where it fails, add the start-up file and check again."""
    probe = [sys.executable, "-c", "import torchvision"]
    if subprocess.run(probe, capture_output=True).returncode == 0:
        return 0
    packages = Path(sysconfig.get_path("purelib"))
    (packages / "_torchvision_operators.py").write_text(FINDER)
    (packages / "torchvision_operators.pth").write_text("import _torchvision_operators\n")
    return subprocess.run(probe).returncode


if __name__ == "__main__":
    sys.exit(main())
