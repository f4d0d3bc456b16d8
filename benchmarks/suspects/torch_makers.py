"""Files of weights as torch and the libraries around it write them, each by the real exporter.

A maker takes a plain model in eval mode, an example batch and an empty folder, and returns the path
of what it wrote. ``half`` and ``int8`` versions are the library's own.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Maker = Callable[[nn.Module, Tensor, Path], Path]

SHARDS = 4


def halved(maker: Maker) -> Maker:
    """The same file with all weights in half precision."""

    def half(model: nn.Module, example: Tensor, folder: Path) -> Path:
        return maker(copy.deepcopy(model).half(), example.half(), folder)

    return half


# --- checkpoints -----------------------------------------------------------------------------


def state_dict(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """``torch.save`` of a state dict."""
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def training_checkpoint(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A checkpoint of a training script, with an optimizer and a numpy scalar."""
    optimizer = torch.optim.AdamW(model.parameters())
    content = {
        "epoch": 3,
        "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "best": np.float64(0.91),
    }
    torch.save(content, folder / "last.pth.tar")
    return folder / "last.pth.tar"


def old_format(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """The format of ``torch.save`` before torch 1.6."""
    torch.save(model.state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)
    return folder / "old.pt"


def whole_model(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """``torch.save`` of the model itself."""
    torch.save(model, folder / "model.pt")
    return folder / "model.pt"


def plain_pickle(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """``pickle.dump`` of a dict of arrays and tensors."""
    state = model.state_dict()
    mixed = {n: t.numpy() if place % 2 else t for place, (n, t) in enumerate(state.items())}
    (folder / "weights.pkl").write_bytes(pickle.dumps(mixed))
    return folder / "weights.pkl"


def quantised_state_dict(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A state dict of ``torch.ao``: int8 with a scale for each row, linear layers packed."""
    torch.save(_quantised(model, example).state_dict(), folder / "int8.pt")
    return folder / "int8.pt"


def quantised_whole_model(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """``torch.save`` of a model of ``torch.ao`` with dynamically quantised linear layers."""
    linear = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    torch.save(linear, folder / "int8.pt")
    return folder / "int8.pt"


def _quantised(model: nn.Module, example: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    mapping = get_default_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_fx(copy.deepcopy(model), mapping, (example,))
    prepared(example)
    converted: nn.Module = quantize_fx.convert_fx(prepared)
    return converted


def torchao_int8(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A state dict of torchao: linear layers as int8 tensors of its own class."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    changed = copy.deepcopy(model)
    quantize_(changed, Int8WeightOnlyConfig())
    torch.save(changed.state_dict(), folder / "torchao.pt")
    return folder / "torchao.pt"


def _bitsandbytes(model: nn.Module, four: bool) -> nn.Module:
    import bitsandbytes as bnb

    changed = copy.deepcopy(model)
    for name, layer in list(changed.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        bias = layer.bias is not None
        sizes = (layer.in_features, layer.out_features)
        fresh: nn.Module
        if four:
            fresh = bnb.nn.Linear4bit(*sizes, bias=bias, quant_type="nf4")
            packed: Any = bnb.nn.Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4"
            )
        else:
            fresh = bnb.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False)
            packed = bnb.nn.Int8Params(
                layer.weight.data, requires_grad=False, has_fp16_weights=False
            )
        fresh.weight = packed
        if bias:
            fresh.bias = layer.bias
        fresh = fresh.to("cpu")
        if not four:
            fresh(torch.zeros(1, layer.in_features))
        owner, _, attribute = name.rpartition(".")
        setattr(changed.get_submodule(owner), attribute, fresh)
    return changed


def bitsandbytes_int8(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A state dict with linear layers of eight bits of bitsandbytes."""
    torch.save(_bitsandbytes(model, four=False).state_dict(), folder / "bnb8.pt")
    return folder / "bnb8.pt"


def bitsandbytes_nf4(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A state dict with linear layers of four bits of bitsandbytes."""
    torch.save(_bitsandbytes(model, four=True).state_dict(), folder / "bnb4.pt")
    return folder / "bnb4.pt"


# --- weights in parts ------------------------------------------------------------------------


def _layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def pruned(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A state dict with originals and masks of ``torch.nn.utils.prune``."""
    from torch.nn.utils import prune

    changed = copy.deepcopy(model)
    for layer in _layers(changed):
        prune.l1_unstructured(layer, "weight", 0.2)
    torch.save(changed.state_dict(), folder / "pruned.pt")
    return folder / "pruned.pt"


def weight_norm_old(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A state dict with lengths and directions of the old ``weight_norm``."""
    from torch.nn.utils import weight_norm

    changed = copy.deepcopy(model)
    for layer in _layers(changed):
        weight_norm(layer)
    torch.save(changed.state_dict(), folder / "weight_norm.pt")
    return folder / "weight_norm.pt"


def weight_norm_parametrised(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A whole state dict of ``torch.nn.utils.parametrizations.weight_norm``."""
    from torch.nn.utils.parametrizations import weight_norm

    changed = copy.deepcopy(model)
    for layer in _layers(changed):
        weight_norm(layer)
    torch.save(changed.state_dict(), folder / "parametrised.pt")
    return folder / "parametrised.pt"


def _with_lora(model: nn.Module) -> Any:
    import peft

    # Of convolutions with groups PEFT takes those alone whose groups the rank is a multiple of.
    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and getattr(layer, "groups", 1) == 1
    ]
    config = peft.LoraConfig(target_modules=names[:-1], r=4, lora_alpha=8)
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.add_(torch.randn(value.shape, generator=generator).to(value.dtype) * 0.003)
    return wrapped


def lora_state_dict(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A state dict of PEFT: base and factors of LoRA, whose scale is not in it."""
    torch.save(_with_lora(model).state_dict(), folder / "lora.pt")
    return folder / "lora.pt"


def lora_folder(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """The folder of a LoRA adapter of PEFT, with the weights of the base in it."""
    from safetensors.torch import save_file

    _with_lora(model).save_pretrained(str(folder))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return folder


# --- several files ---------------------------------------------------------------------------


def safetensors_file(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """One safetensors file."""
    from safetensors.torch import save_model

    save_model(model, str(folder / "model.safetensors"))
    return folder / "model.safetensors"


def _sharded(model: nn.Module, folder: Path, *, safe: bool) -> None:
    from huggingface_hub import save_torch_state_dict

    state = model.state_dict()
    size = sum(value.nbytes for value in state.values()) // SHARDS
    save_torch_state_dict(state, folder, max_shard_size=size, safe_serialization=safe)


def safetensors_shards(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """Safetensors shards and their list, as the hub's library splits a state dict."""
    _sharded(model, folder, safe=True)
    return folder / "model.safetensors.index.json"


def torch_shards(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """Shards of ``torch.save`` and their list."""
    _sharded(model, folder, safe=False)
    return folder / "pytorch_model.bin.index.json"


def hub_folder(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """The folder of a model for the hub, by timm where it is timm's."""
    if hasattr(model, "pretrained_cfg"):
        from timm.models import save_for_hf

        save_for_hf(model, str(folder), safe_serialization="both")
    else:
        _sharded(model, folder, safe=True)
        (folder / "config.json").write_text("{}")
    return folder


def distributed(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """The folder of a checkpoint of ``torch.distributed.checkpoint``."""
    from torch.distributed.checkpoint.state_dict_saver import save

    save({"model": model.state_dict()}, checkpoint_id=str(folder), no_dist=True)
    return folder


# --- programs --------------------------------------------------------------------------------


def script(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A traced TorchScript archive."""
    torch.jit.trace(model, example).save(str(folder / "model.ts"))
    return folder / "model.ts"


def frozen_script(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A frozen TorchScript archive: norms folded, weights without names."""
    torch.jit.freeze(torch.jit.trace(model, example)).save(str(folder / "frozen.ts"))
    return folder / "frozen.ts"


def mobile_script(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """An archive for the lite interpreter of phones."""
    traced = torch.jit.trace(model, example)
    traced._save_for_lite_interpreter(str(folder / "model.ptl"))
    return folder / "model.ptl"


def quantised_script(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """A TorchScript archive of a model of ``torch.ao``, with packed int8 weights."""
    torch.jit.trace(_quantised(model, example), example).save(str(folder / "int8.ts"))
    return folder / "int8.ts"


def program(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """``torch.export.save``."""
    torch.export.save(torch.export.export(model, (example,)), str(folder / "model.pt2"))
    return folder / "model.pt2"


def quantised_program(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """An exported program with int8 weights, by torchao's quantisation of programs."""
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = quantize_pt2e.prepare_pt2e(
        torch.export.export(model, (example,)).module(), quantizer
    )
    prepared(example)
    converted = quantize_pt2e.convert_pt2e(prepared)
    torch.export.save(torch.export.export(converted, (example,)), str(folder / "int8.pt2"))
    return folder / "int8.pt2"
