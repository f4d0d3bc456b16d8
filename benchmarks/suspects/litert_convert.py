"""Turn weights of a timm model into TensorFlow Lite files by LiteRT; run by a Python that has it.

    python -m venv litert && litert/bin/pip install torch torchvision timm litert-torch
    litert/bin/python benchmarks/suspects/litert_convert.py resnet18 weights.pt folder

Writes ``plain.tflite``, ``half.tflite`` and ``int8.tflite`` into the folder.
"""

import sys
from pathlib import Path

import litert_torch
import timm
import torch
from ai_edge_quantizer import quantizer, recipe_manager


def quantised(source: Path, target: Path, bits: int) -> None:
    """Weights of a number of bits, by LiteRT's quantiser."""
    from ai_edge_quantizer import qtyping

    manager = recipe_manager.RecipeManager()
    if bits == 16:
        manager.add_weight_only_config(
            ".*", qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=16, algorithm_key="float_casting"
        )
    else:
        manager.add_dynamic_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=8)
    made = quantizer.Quantizer(str(source))
    made.load_quantization_recipe(manager.get_quantization_recipe())
    made.quantize().export_model(str(target), overwrite=True)


def main() -> None:
    """Convert one model."""
    name, weights, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    model = timm.create_model(name, num_classes=10).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    plain = folder / "plain.tflite"
    litert_torch.convert(model, (torch.zeros(1, 3, 224, 224),)).export(str(plain))
    quantised(plain, folder / "half.tflite", 16)
    quantised(plain, folder / "int8.tflite", 8)


if __name__ == "__main__":
    main()
