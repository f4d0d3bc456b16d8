"""Files of weights in the formats of other frameworks, by the real exporter where there is one.

For GGUF and Keras no program turns any torch model into a file, so the weights go through the
writer of the format by hand: a Keras layer with the kernel in Keras's layout for each layer of the
model, a tensor of GGUF for each tensor.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.suspects.torch_makers import Maker

# --- ONNX ------------------------------------------------------------------------------------


def onnx_model(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """By torch's exporter: norms folded where it can."""
    _export(model, example, folder / "model.onnx", external=False)
    return folder / "model.onnx"


def onnx_external(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """Likewise, with the weights in a file beside the model."""
    _export(model, example, folder / "model.onnx", external=True)
    return folder / "model.onnx"


def _export(model: nn.Module, example: Tensor, path: Path, *, external: bool) -> None:
    torch.onnx.export(
        model, (example,), str(path), dynamo=True, external_data=external, verbose=False
    )


def onnx_scripted(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """By torch's older exporter: norms folded, weights numbered."""
    torch.onnx.export(model, (example,), str(folder / "old.onnx"), dynamo=False)
    return folder / "old.onnx"


def onnx_qdq(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """Quantised by ONNX Runtime with calibration: int8 weights, dequantised in the graph."""
    return _static(model, example, folder, "QDQ")


def onnx_operators(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """Likewise, with operators on integers."""
    return _static(model, example, folder, "QOperator")


def _static(model: nn.Module, example: Tensor, folder: Path, form: str) -> Path:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": example.numpy()}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    source, target = folder / "float.onnx", folder / "int8.onnx"
    torch.onnx.export(model, (example,), str(source), dynamo=False, input_names=["x"])
    prepared = folder / "prepared.onnx"
    quantization.quant_pre_process(str(source), str(prepared))
    source.unlink()
    source = prepared
    quantization.quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat[form],
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )
    source.unlink()
    return target


def onnx_dynamic(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """Matrices quantised by ONNX Runtime without calibration."""
    from onnxruntime import quantization

    source, target = folder / "float.onnx", folder / "int8.onnx"
    torch.onnx.export(model, (example,), str(source), dynamo=False)
    quantization.quantize_dynamic(str(source), str(target), per_channel=True)
    source.unlink()
    return target


# --- numpy, GGUF -----------------------------------------------------------------------------


def npz(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """``numpy.savez``."""
    np.savez(folder / "weights.npz", **_arrays(model))
    return folder / "weights.npz"


def npz_packed(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """``numpy.savez_compressed``."""
    np.savez_compressed(folder / "weights.npz", **_arrays(model))
    return folder / "weights.npz"


def _arrays(model: nn.Module) -> dict[str, Any]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def _gguf(kind: str) -> Maker:
    def maker(model: nn.Module, example: Tensor, folder: Path) -> Path:
        import gguf

        writer = gguf.GGUFWriter(str(folder / "model.gguf"), "resnet")
        writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
        wanted = gguf.GGMLQuantizationType[kind]
        block = gguf.GGML_QUANT_SIZES[wanted][0]
        for name, value in model.state_dict().items():
            if not value.is_floating_point() or not value.dim():
                continue
            array = value.float().numpy()
            if value.dim() > 1 and value.shape[-1] % block == 0:
                data = gguf.quantize(array, wanted)
                writer.add_tensor(name, data, raw_dtype=wanted)
            else:
                # Rows that do not fill a block stay as they are, as in llama.cpp's converters.
                writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return folder / "model.gguf"

    return maker


gguf_float = _gguf("F32")
gguf_half = _gguf("F16")
gguf_bfloat16 = _gguf("BF16")
gguf_int8 = _gguf("Q8_0")


# --- Keras -----------------------------------------------------------------------------------


def _keras_model(model: nn.Module, dtype: str) -> Any:
    """A Keras model with a layer for each convolution and matrix of a torch model."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    outputs, inputs = [], []
    for name, layer in model.named_modules():
        label = name.replace(".", "_")
        made: Any
        if isinstance(layer, nn.Conv2d):
            made, source, kernel = _keras_convolution(layer, label, dtype)
        elif isinstance(layer, nn.Linear):
            made = keras.layers.Dense(
                layer.out_features, use_bias=layer.bias is not None, name=label, dtype=dtype
            )
            source = keras.Input((layer.in_features,))
            kernel = layer.weight.detach().T
        else:
            continue
        inputs.append(source)
        outputs.append(made(source))
        bias = [] if layer.bias is None else [layer.bias.detach().numpy()]
        made.set_weights([kernel.numpy(), *bias])
    return keras.Model(inputs, outputs)


def _keras_convolution(layer: nn.Conv2d, label: str, dtype: str) -> tuple[Any, Any, Tensor]:
    import keras

    size = (layer.kernel_size[0] + 1, layer.kernel_size[1] + 1, layer.in_channels)
    settings = {"use_bias": layer.bias is not None, "name": label, "dtype": dtype}
    if layer.groups == layer.in_channels and layer.groups > 1:
        many = layer.out_channels // layer.in_channels
        made = keras.layers.DepthwiseConv2D(layer.kernel_size, depth_multiplier=many, **settings)
        kernel = layer.weight.detach().reshape(layer.in_channels, many, *layer.kernel_size)
        return made, keras.Input(size), kernel.permute(2, 3, 0, 1)
    made = keras.layers.Conv2D(
        layer.out_channels, layer.kernel_size, groups=layer.groups, **settings
    )
    return made, keras.Input(size), layer.weight.detach().permute(2, 3, 1, 0)


def _keras(file: str, dtype: str = "float32") -> Maker:
    def maker(model: nn.Module, example: Tensor, folder: Path) -> Path:
        made = _keras_model(model, dtype)
        if file.endswith(".weights.h5"):
            made.save_weights(str(folder / file))
        else:
            made.save(str(folder / file))
        return folder / file

    return maker


keras_archive = _keras("model.keras")
keras_archive_half = _keras("model.keras", "float16")
keras_h5 = _keras("model.h5")
keras_h5_half = _keras("model.h5", "float16")
keras_weights = _keras("model.weights.h5")
keras_weights_half = _keras("model.weights.h5", "float16")


# --- Core ML ---------------------------------------------------------------------------------


def _converted(model: nn.Module, example: Tensor, form: str, **settings: Any) -> Any:
    import coremltools as ct

    # From a traced model coremltools 9 stops at shapes, which numpy 2 no longer takes as numbers.
    exported = torch.export.export(model, (example,)).run_decompositions({})
    return ct.convert(exported, convert_to=form, **settings)


def _coreml(form: str, precision: str) -> Maker:
    def maker(model: nn.Module, example: Tensor, folder: Path) -> Path:
        import coremltools as ct

        settings: dict[str, Any] = {}
        if form == "mlprogram":
            settings["compute_precision"] = getattr(ct.precision, precision)
        return _written(_converted(model, example, form, **settings), folder, form)

    return maker


def _written(converted: Any, folder: Path, form: str) -> Path:
    path = folder / ("model.mlpackage" if form == "mlprogram" else "model.mlmodel")
    converted.save(str(path))
    return path


coreml_package = _coreml("mlprogram", "FLOAT32")
coreml_package_half = _coreml("mlprogram", "FLOAT16")
coreml_network = _coreml("neuralnetwork", "FLOAT32")


def coreml_package_int8(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A package with weights of eight bits, by coremltools."""
    from coremltools.optimize import coreml as compression

    converted = _converted(model, example, "mlprogram")
    config = compression.OptimizationConfig(
        global_config=compression.OpLinearQuantizerConfig(mode="linear_symmetric")
    )
    return _written(compression.linear_quantize_weights(converted, config), folder, "mlprogram")


def _coreml_network_quantised(bits: int, folder_name: str) -> Maker:
    def maker(model: nn.Module, example: Tensor, folder: Path) -> Path:
        import coremltools as ct
        from coremltools.models.neural_network import quantization_utils

        converted = _converted(model, example, "neuralnetwork")
        spec = quantization_utils.quantize_weights(converted, nbits=bits)
        path = folder / folder_name
        if hasattr(spec, "save"):
            spec.save(str(path))
        else:
            ct.models.utils.save_spec(spec, str(path))
        return path

    return maker


coreml_network_half = _coreml_network_quantised(16, "half.mlmodel")
coreml_network_int8 = _coreml_network_quantised(8, "int8.mlmodel")
