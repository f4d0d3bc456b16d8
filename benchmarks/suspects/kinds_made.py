"""Which makers there are for each kind of file, plain, in half precision and with eight bits."""

from __future__ import annotations

from benchmarks.suspects import framework_makers as other
from benchmarks.suspects import tflite_makers as lite
from benchmarks.suspects import torch_makers as made
from benchmarks.suspects.torch_makers import Maker, halved

__all__ = ["MADE"]

MADE: dict[str, dict[str, Maker]] = {
    "torch state dict": {
        "plain": made.state_dict,
        "half": halved(made.state_dict),
        "int8": made.quantised_state_dict,
    },
    "training checkpoint, numpy scalar": {
        "plain": made.training_checkpoint,
        "half": halved(made.training_checkpoint),
    },
    "old torch format": {"plain": made.old_format, "half": halved(made.old_format)},
    "whole model, pickled": {
        "plain": made.whole_model,
        "half": halved(made.whole_model),
        "int8": made.quantised_whole_model,
    },
    "pickle without torch.save": {"plain": made.plain_pickle, "half": halved(made.plain_pickle)},
    "torchao tensors": {"int8": made.torchao_int8},
    "bitsandbytes, 8 bits": {"int8": made.bitsandbytes_int8},
    "bitsandbytes, 4 bits": {"int8": made.bitsandbytes_nf4},
    "pruned: originals and masks": {"plain": made.pruned, "half": halved(made.pruned)},
    "weight norm": {"plain": made.weight_norm_old, "half": halved(made.weight_norm_old)},
    "weight norm, parametrised": {
        "plain": made.weight_norm_parametrised,
        "half": halved(made.weight_norm_parametrised),
    },
    "LoRA, state dict": {"plain": made.lora_state_dict, "half": halved(made.lora_state_dict)},
    "LoRA, folder with its base": {"plain": made.lora_folder, "half": halved(made.lora_folder)},
    "safetensors": {"plain": made.safetensors_file, "half": halved(made.safetensors_file)},
    "safetensors shards": {
        "plain": made.safetensors_shards,
        "half": halved(made.safetensors_shards),
    },
    "torch shards": {"plain": made.torch_shards, "half": halved(made.torch_shards)},
    "folder for the hub": {"plain": made.hub_folder, "half": halved(made.hub_folder)},
    "torch.distributed": {"plain": made.distributed, "half": halved(made.distributed)},
    "TorchScript": {
        "plain": made.script,
        "half": halved(made.script),
        "int8": made.quantised_script,
    },
    "TorchScript, frozen": {"plain": made.frozen_script, "half": halved(made.frozen_script)},
    "TorchScript for phones": {"plain": made.mobile_script, "half": halved(made.mobile_script)},
    "exported program": {
        "plain": made.program,
        "half": halved(made.program),
        "int8": made.quantised_program,
    },
    "ONNX": {
        "plain": other.onnx_model,
        "half": halved(other.onnx_model),
        "int8": other.onnx_qdq,
    },
    "ONNX, older exporter": {
        "plain": other.onnx_scripted,
        "half": halved(other.onnx_scripted),
        "int8": other.onnx_operators,
    },
    "ONNX, external data": {"plain": other.onnx_external, "half": halved(other.onnx_external)},
    "ONNX, dynamic": {"int8": other.onnx_dynamic},
    "npz": {"plain": other.npz, "half": halved(other.npz)},
    "npz, packed": {"plain": other.npz_packed, "half": halved(other.npz_packed)},
    "GGUF": {"plain": other.gguf_float, "half": other.gguf_half, "int8": other.gguf_int8},
    "TensorFlow Lite": {
        "plain": lite.written_float,
        "half": lite.written_half,
        "int8": lite.written_int8,
    },
    "Keras archive": {"plain": other.keras_archive, "half": other.keras_archive_half},
    "Keras h5": {"plain": other.keras_h5, "half": other.keras_h5_half},
    "Keras weights": {"plain": other.keras_weights, "half": other.keras_weights_half},
    "Core ML package": {
        "plain": other.coreml_package,
        "half": other.coreml_package_half,
        "int8": other.coreml_package_int8,
    },
    "Core ML network": {
        "plain": other.coreml_network,
        "half": other.coreml_network_half,
        "int8": other.coreml_network_int8,
    },
}
"""Makers by kind and precision."""
