"""Public models beyond timm: how each is built, and what it is called with in training."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MODELS", "Public"]

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
PAIRS = torch.rand(2, 2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
VOLUMES = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(2))
WORDS = torch.randint(3, 90, (4, 12), generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Public:
    """A model of somebody else's.

    Attributes:
        package: What is installed for it.
        name: What it is called there.
        build: Makes it, with random weights.
        inputs: What it is called with in training, as ``example_inputs`` takes it.
        loss: What training minimises, of what it returns.
        config: Preset, if not ``keyed``.
    """

    package: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    loss: Callable[[Any], Tensor] | None = None
    config: str = "keyed"


def _of(module: str) -> Any:
    return importlib.import_module(module)


def _made(module: str, name: str, *args: Any, **options: Any) -> Any:
    return getattr(_of(module), name)(*args, **options)


def _torchvision() -> Iterator[Public]:
    package = "torchvision"

    def flow(outputs: list[Tensor]) -> Tensor:
        return torch.stack([each.square().mean() for each in outputs]).sum()

    for name in ("raft_small", "raft_large"):
        yield Public(
            package,
            name,
            partial(_made, "torchvision.models.optical_flow", name),
            lambda: {"image1": PAIRS[0] * 2 - 1, "image2": PAIRS[1] * 2 - 1, "num_flow_updates": 2},
            flow,
        )

    def pictures() -> Any:
        boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0], [10.0, 20.0, 60.0, 60.0]])
        target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
        return list(IMAGES[:2]), [target, {key: value[:1] for key, value in target.items()}]

    def losses(outputs: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(outputs.values())).sum()

    few = {"rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 20}
    small = {"weights_backbone": None, "num_classes": 5, "min_size": 64, "max_size": 64}
    for name, options in {
        "retinanet_resnet50_fpn": small,
        "fcos_resnet50_fpn": small,
        "fasterrcnn_mobilenet_v3_large_fpn": {**small, **few},
        "ssdlite320_mobilenet_v3_large": {"weights_backbone": None, "num_classes": 5},
    }.items():
        yield Public(
            package,
            name,
            partial(_made, "torchvision.models", "get_model", name, weights=None, **options),
            pictures,
            losses,
        )
    for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
        yield Public(
            package,
            name,
            partial(
                _made,
                "torchvision.models",
                "get_model",
                name,
                weights=None,
                weights_backbone=None,
                num_classes=5,
            ),
            lambda: IMAGES,
        )
    for name in ("r3d_18", "mvit_v2_s", "swin3d_t"):
        size = 224 if name.startswith("mvit") else 64
        frames = 16 if name.startswith("mvit") else 4
        yield Public(
            package,
            name,
            partial(_made, "torchvision.models", "get_model", name, weights=None),
            partial(torch.rand, 2, 3, frames, size, size),
        )


def _ultralytics() -> Iterator[Public]:
    def detector(name: str) -> nn.Module:
        model: nn.Module = _of("ultralytics").YOLO(name).model
        return model

    for name in ("yolov5n", "yolov8n", "yolo11n", "yolo11n-seg", "yolo11n-pose", "yolo11n-cls"):
        yield Public("ultralytics", name, partial(detector, f"{name}.yaml"), lambda: IMAGES)
    for name in ("yolov10n", "yolov9t"):
        yield Public("ultralytics", name, partial(detector, f"{name}.yaml"), lambda: IMAGES)


def _segmentation() -> Iterator[Public]:
    names = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3")
    for name in (*names, "DeepLabV3Plus", "PAN", "UPerNet", "Segformer"):
        yield Public(
            "segmentation-models-pytorch",
            name,
            partial(
                _made,
                "segmentation_models_pytorch",
                name,
                "resnet18",
                encoder_weights=None,
                classes=3,
            ),
            lambda: nn.functional.interpolate(IMAGES, scale_factor=2.0),  # PAN takes no smaller
        )


def _monai() -> Iterator[Public]:
    nets: dict[str, dict[str, Any]] = {
        "UNet": {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 2,
            "channels": (16, 32, 64),
            "strides": (2, 2),
            "num_res_units": 2,
        },
        "BasicUNetPlusPlus": {"spatial_dims": 3, "in_channels": 1, "features": (16,) * 6},
        "SegResNet": {"init_filters": 16},
        "SegResNetVAE": {"input_image_size": (32, 32, 32), "init_filters": 16},
        "DynUNet": {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 2,
            "kernel_size": (3, 3, 3),
            "strides": (1, 2, 2),
            "upsample_kernel_size": (2, 2),
            "deep_supervision": True,
            "deep_supr_num": 1,
        },
        "UNETR": {
            "in_channels": 1,
            "out_channels": 2,
            "img_size": (32, 32, 32),
            "hidden_size": 96,
            "mlp_dim": 192,
            "num_heads": 4,
        },
        "SwinUNETR": {"in_channels": 1, "out_channels": 2, "feature_size": 12},
        "AttentionUnet": {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 2,
            "channels": (16, 32, 64),
            "strides": (2, 2),
        },
        "VNet": {},
        "HighResNet": {"spatial_dims": 3},
        "DenseNet121": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
        "EfficientNetBN": {
            "model_name": "efficientnet-b0",
            "pretrained": False,
            "spatial_dims": 3,
            "in_channels": 1,
            "num_classes": 2,
        },
        "MedNeXtS": {"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
        "ViT": {"in_channels": 1, "img_size": (32,) * 3, "patch_size": (16,) * 3, "num_classes": 2},
    }
    for name, options in nets.items():
        options = {**options, "classification": True} if name == "ViT" else options
        yield Public(
            "monai",
            name,
            partial(_made, "monai.networks.nets", name, **options),
            lambda: VOLUMES,
        )


def _transformers() -> Iterator[Public]:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "intermediate_size": 64, "vocab_size": 99}
    picture = {"image_size": 64, "patch_size": 16}

    def library() -> Any:
        return _of("transformers")

    def loss(output: Any) -> Tensor:
        value: Tensor = output.loss
        return value

    def clip() -> nn.Module:
        config = library().CLIPConfig(
            text_config={**text, "eos_token_id": 2},
            vision_config={**small, "intermediate_size": 64, **picture},
            projection_dim=16,
        )
        model: nn.Module = library().CLIPModel(config)
        return model

    words = {"input_ids": WORDS, "attention_mask": torch.ones_like(WORDS)}
    both = {**words, "pixel_values": IMAGES}
    yield Public("transformers", "CLIPModel", clip, lambda: both)
    yield Public(
        "transformers", "CLIPModel, its loss", clip, lambda: {**both, "return_loss": True}, loss
    )

    def bert(kind: str, **more: Any) -> nn.Module:
        model: nn.Module = getattr(library(), kind)(library().BertConfig(**text, **more))
        return model

    yield Public("transformers", "BertModel", lambda: bert("BertModel"), lambda: words)
    yield Public(
        "transformers",
        "BertForSequenceClassification, its loss",
        lambda: bert("BertForSequenceClassification", num_labels=3),
        lambda: {**words, "labels": torch.arange(4) % 3},
        loss,
    )
    yield Public(
        "transformers",
        "BertForMaskedLM, its loss",
        lambda: bert("BertForMaskedLM"),
        lambda: {**words, "labels": WORDS},
        loss,
    )
    yield Public(
        "transformers",
        "GPT2LMHeadModel",
        lambda: library().GPT2LMHeadModel(
            library().GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=99)
        ),
        lambda: words,
    )
    yield Public(
        "transformers",
        "LlamaForCausalLM",
        lambda: library().LlamaForCausalLM(library().LlamaConfig(**text)),
        lambda: words,
    )
    yield Public(
        "transformers",
        "T5ForConditionalGeneration, its loss",
        lambda: library().T5ForConditionalGeneration(
            library().T5Config(
                vocab_size=99,
                d_model=32,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_heads=2,
                decoder_start_token_id=0,
            )
        ),
        lambda: {**words, "labels": WORDS},
        loss,
    )
    yield Public(
        "transformers",
        "SwinForImageClassification",
        lambda: library().SwinForImageClassification(
            library().SwinConfig(
                image_size=64,
                patch_size=4,
                embed_dim=16,
                depths=[2, 2],
                num_heads=[2, 4],
                window_size=4,
            )
        ),
        lambda: IMAGES,
    )
    yield Public(
        "transformers",
        "SegformerForSemanticSegmentation",
        lambda: library().SegformerForSemanticSegmentation(
            library().SegformerConfig(depths=[1] * 4, hidden_sizes=[16, 32, 48, 64])
        ),
        lambda: IMAGES,
    )
    yield Public(
        "transformers",
        "WhisperForConditionalGeneration",
        lambda: library().WhisperForConditionalGeneration(
            library().WhisperConfig(
                vocab_size=99,
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                num_mel_bins=8,
                max_source_positions=16,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
            )
        ),
        lambda: {"input_features": torch.rand(4, 8, 32), "decoder_input_ids": WORDS},
    )
    yield Public(
        "transformers",
        "Wav2Vec2ForCTC",
        lambda: library().Wav2Vec2ForCTC(
            library().Wav2Vec2Config(
                **text,
                conv_dim=(32, 32),
                conv_stride=(5, 4),
                conv_kernel=(10, 8),
                num_feat_extract_layers=2,
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=2,
                mask_time_prob=0.0,
            )
        ),
        lambda: torch.rand(4, 800),
    )


def _spiking() -> Iterator[Public]:
    def network(step_mode: str) -> nn.Module:
        package = "spikingjelly.activation_based"
        neuron, functional = _of(f"{package}.neuron"), _of(f"{package}.functional")
        surrogate = _of(f"{package}.surrogate")
        model: nn.Module = _of(f"{package}.model.spiking_resnet").spiking_resnet18(
            spiking_neuron=neuron.IFNode, surrogate_function=surrogate.ATan(), detach_reset=True
        )
        functional.set_step_mode(model, step_mode)

        class Reset(nn.Module):
            """As its training loops do: neurons begin anew with every batch."""

            def __init__(self) -> None:
                super().__init__()
                self.network = model

            def forward(self, x: Tensor) -> Tensor:
                functional.reset_net(self.network)
                output: Tensor = self.network(x)
                return output

        return Reset()

    package = "spikingjelly"
    yield Public(package, "spiking_resnet18, one step", lambda: network("s"), lambda: IMAGES)
    yield Public(
        package,
        "spiking_resnet18, steps first",
        lambda: network("m"),
        lambda: IMAGES.repeat(3, 1, 1, 1, 1),
    )


def _graphs() -> Iterator[Public]:
    def hetero() -> Any:
        kinds = ["paper", "author"]
        edges = [("author", "writes", "paper"), ("paper", "of", "author")]
        return kinds, edges

    def network() -> nn.Module:
        pyg = _of("torch_geometric.nn")
        inner = pyg.GraphSAGE(16, 32, 2, 8, norm="batch_norm")
        model: nn.Module = pyg.to_hetero(inner, hetero())
        return model

    def inputs() -> Any:
        kinds, edges = hetero()
        dice = torch.Generator().manual_seed(4)
        x = {kind: torch.randn(24, 16, generator=dice) for kind in kinds}
        return {
            "x": x,
            "edge_index": {edge: torch.randint(0, 24, (2, 96), generator=dice) for edge in edges},
        }

    package = "torch-geometric"
    yield Public(package, "to_hetero(GraphSAGE)", network, inputs)

    class Hetero(nn.Module):
        """Convolutions by kind of edge, as in PyG's own examples."""

        def __init__(self, kind: str) -> None:
            super().__init__()
            pyg = _of("torch_geometric.nn")
            kinds, edges = hetero()
            if kind == "HGTConv":
                self.convolution = pyg.HGTConv(16, 32, (kinds, edges), heads=2)
            else:
                self.convolution = pyg.HeteroConv({e: pyg.SAGEConv((-1, -1), 32) for e in edges})
                self.convolution(**{f"{k}_dict": v for k, v in inputs().items()})
            self.norms = nn.ModuleDict({kind: pyg.BatchNorm(32) for kind in kinds})
            self.heads = nn.ModuleDict({kind: pyg.Linear(32, 8) for kind in kinds})

        def forward(self, x: dict[str, Tensor], edge_index: dict[Any, Tensor]) -> Any:
            x = self.convolution(x, edge_index)
            return {k: self.heads[k](self.norms[k](value).relu()) for k, value in x.items()}

    for kind in ("HeteroConv", "HGTConv"):
        yield Public(package, kind, partial(Hetero, kind), inputs)

    class Relations(nn.Module):
        """RGCN, which has no norms."""

        def __init__(self) -> None:
            super().__init__()
            pyg = _of("torch_geometric.nn")
            self.first, self.last = pyg.RGCNConv(16, 24, 3), pyg.RGCNConv(24, 8, 3)

        def forward(self, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
            hidden = self.first(x, edges, kinds).relu()
            output: Tensor = self.last(hidden, edges, kinds)
            return output

    def relations() -> Any:
        dice = torch.Generator().manual_seed(4)
        edges = torch.randint(0, 24, (2, 96), generator=dice)
        return torch.randn(24, 16, generator=dice), edges, torch.arange(96) % 3

    yield Public(package, "RGCNConv", Relations, relations, config="signature")


MODELS: tuple[Public, ...] = (
    *_torchvision(),
    *_ultralytics(),
    *_segmentation(),
    *_monai(),
    *_transformers(),
    *_spiking(),
    *_graphs(),
)
