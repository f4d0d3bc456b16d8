"""The strongest disguise there is, on many architectures, undone with the released weights.

Every model is drawn at random, its factors, shifts and statistics as after a training, and marked
in closed form; what training does to weights is in ``kin``. Then a random element of every symmetry
is put on a copy: matrices of condition 10 on residual streams, bottlenecks and heads, permutations,
factors over two decades, signs. The signature is read plainly, and after the disguise was undone
from entries that were not used for it, beside the same entries of the undisguised model; once more
with noise of 30 % of every row below the disguise; and from a stranger of the same architecture.

    python -m benchmarks.proof.symmetries     # resumes; writes results/symmetries.json and .md
    python -m benchmarks.proof.symmetries --models vit_tiny_patch16_224
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import passportize as pp
from benchmarks.common.paths import RESULTS
from benchmarks.common.records import heading, measure_models
from passportize.attacks.disguise import disguise
from passportize.release.claim import Claim, claim_of
from passportize.signature.model_key import ModelKey
from passportize.surgery.branches import take_out_branches
from passportize.verification.expectation import Expectation
from passportize.verification.links import Links, judge_links
from passportize.verification.suspect import open_suspect
from tests.support.point_cloud_dense import DGCNN, PointNet
from tests.support.widths import noised

OWNER = pp.Passport.generate("Acme", date="2026-01-01", secret=(2**200).to_bytes(32, "big"))
NOISE = 0.3
MODELS = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "resnetv2_50",
    "res2net50_14w_8s",
    "ecaresnet26t",
    "skresnet18",
    "densenet121",
    "inception_v3",
    "inception_v4",
    "vgg11_bn",
    "regnetx_002",
    "regnety_002",
    "resnest14d",
    "dla34",
    "hrnet_w18_small",
    "mobilenetv1_100",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "efficientnet_b0",
    "efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "mnasnet_050",
    "fbnetc_100",
    "mixnet_s",
    "ghostnet_050",
    "rexnet_100",
    "hardcorenas_a",
    "semnasnet_075",
    "lcnet_050",
    "tinynet_e",
    "cspresnet50",
    "darknet17",
    "selecsls42b",
    "ese_vovnet19b_dw",
    "repvgg_a0",
    "mobileone_s0",
    "convnext_atto",
    "convnextv2_atto",
    "edgenext_xx_small",
    "inception_next_atto",
    "starnet_s1",
    "focalnet_tiny_srf",
    "poolformerv2_s12",
    "convmixer_768_32",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "eva02_tiny_patch14_224",
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "crossvit_tiny_240",
    "pit_ti_224",
    "levit_128",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_ns_224",
    "twins_svt_small",
    "pvt_v2_b0",
    "nest_tiny",
    "coat_lite_tiny",
    "coat_tiny",
    "gcvit_xxtiny",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "maxvit_rmlp_pico_rw_256",
    "coatnet_pico_rw_224",
    "efficientformer_l1",
    "tiny_vit_5m_224",
    "mixer_s16_224",
    "resmlp_12_224",
    "gmlp_ti16_224",
    "volo_d1_224",
    "visformer_tiny",
    "davit_tiny",
    "swinv2_tiny_window8_256",
    "efficientvit_b0",
    "vit_tiny_patch16_dinov3_qkvb",
    "efficientvit_m0",
    "sequencer2d_s",
    "mobilenetv4_hybrid_medium",
    "resnet50_gn",
    "vit_large_patch16_224",
    "convnext_large",
)


POINTS = (2, 3, 128)
"""Clouds, coordinates, points."""


def bert() -> nn.Module:
    """A small transformer of another library."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
    )
    model: nn.Module = BertForSequenceClassification(config)
    return model


def drawn(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words() -> dict[str, Tensor]:
    """What language models are called with."""
    return {"input_ids": torch.randint(100, (2, 12), generator=drawn())}


LANGUAGE_MODELS = {
    "Llama": ("LlamaConfig", "LlamaForCausalLM"),
    "Qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "Gemma": ("GemmaConfig", "GemmaForCausalLM"),
    "Gemma 3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "Phi-3": ("Phi3Config", "Phi3ForCausalLM"),
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel"),
}
"""Classes of ``transformers``: of the configuration and of the model."""


def language_model(family: str) -> nn.Module:
    """A small language model; two heads of queries share keys and values, but for GPT-2."""
    import transformers

    config, model = (getattr(transformers, name) for name in LANGUAGE_MODELS[family])
    if family == "GPT-2":
        options = {"n_embd": 192, "n_layer": 3, "n_head": 6, "n_positions": 64}
    else:
        options = {
            "hidden_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "intermediate_size": 512,
            "pad_token_id": 0,
        }
    made: nn.Module = model(config(vocab_size=400, **options))
    return made


OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "PointNet": (lambda: PointNet(10), lambda: torch.randn(POINTS, generator=drawn())),
    "DGCNN": (lambda: DGCNN(10), lambda: torch.randn(POINTS, generator=drawn())),
    "ViT-Ti, queries and keys normed": (
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10, qk_norm=True),
        lambda: torch.randn(2, 3, 224, 224, generator=drawn()),
    ),
    "BERT (transformers)": (bert, words),
    **{
        f"{family} (transformers)": (functools.partial(language_model, family), words)
        for family in LANGUAGE_MODELS
    },
}
"""Models that timm has not by name, and what they are called with."""


def build(name: str, seed: int) -> nn.Module:
    """A model, as after a training."""
    if name in OTHERS:
        return as_trained(OTHERS[name][0], seed)
    return as_trained(lambda: timm.create_model(name, num_classes=10), seed)


@torch.no_grad()
def as_trained(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model with factors, shifts and statistics drawn at random, as a training leaves them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[operator]
                module.running_mean.normal_(0, 0.3)  # type: ignore[operator]
        for key, parameter in model.named_parameters():
            # A head that starts next to zero would make every output the same.
            if parameter.dim() > 1 and float(parameter.square().mean()) < 1e-6:
                parameter.normal_(0, 0.02)
            if parameter.dim() <= 1 or key.endswith(("gamma", "gamma_1", "gamma_2")):
                if key.endswith("bias"):
                    parameter.normal_(0, 0.1)
                elif parameter.numel() > 1:
                    parameter.uniform_(0.5, 1.5)
    return model.eval()


def protect(name: str, example_inputs: Any) -> tuple[nn.Module, Claim]:
    """A marked model, restored, and the claim on it."""
    model = pp.passportize(
        build(name, 0),
        OWNER,
        config=pp.PassportConfig.signature(),
        example_inputs=example_inputs,
    )
    pp.embed_signature(model)
    claim = claim_of(model)
    take_out_branches(model)
    return model.eval(), claim


def judge(
    suspect: nn.Module, released: nn.Module, claim: Claim, example_inputs: Any = None
) -> dict[str, Any]:
    """The plain reading, and the one through the released weights."""
    start = time.process_time()
    verdict = pp.verify(suspect, OWNER, claim, released=released, example_inputs=example_inputs)
    # Where it is accepted as it stands, what an alignment leaves is asked all the same.
    aligned = (
        linked(verdict.links)
        if verdict.links is not None
        else read_aligned(suspect, released, claim, example_inputs)
    )
    return {
        "plain": verdict.matched,
        "total": verdict.total,
        "accepted": verdict.accepted,
        "seconds": round(time.process_time() - start, 1),
        **aligned,
    }


def linked(links: Links) -> dict[str, Any]:
    """What was read of an aligned suspect."""
    if links.similarity is None:
        return {}
    return {
        "aligned": links.aligned_matched,
        "read": links.aligned_total,
        "strength": round(links.aligned_strength, 1),
        "same entries": links.entries_matched,
        "likeness": round(links.similarity.likeness, 4),
    }


def read_aligned(
    suspect: nn.Module, released: nn.Module, claim: Claim, example_inputs: Any
) -> dict[str, Any]:
    """What is read of a suspect after an alignment, also where it is accepted without."""
    expected = Expectation.from_claim(claim)
    key = ModelKey(OWNER, expected.layout)
    opened = open_suspect(suspect, None, example_inputs)
    return linked(judge_links(released.state_dict(), opened, key, expected, example_inputs))


def measure(name: str) -> dict[str, Any]:
    """All suspects of one architecture."""
    example = OTHERS[name][1]() if name in OTHERS else None
    released, claim = protect(name, example)
    if example is None:
        size: tuple[int, ...] = getattr(released, "default_cfg")["input_size"]  # noqa: B009
        x: Any = torch.randn(2, *size, generator=drawn())
    else:
        x = example

    def disguised(model: nn.Module) -> nn.Module:
        disguise(model, drawn(3), example_inputs=example)
        return model

    def outputs(model: nn.Module) -> Tensor:
        with torch.no_grad():
            found = model(**x) if isinstance(x, dict) else model(x)
        while not isinstance(found, Tensor):
            found = found[0]
        return found

    copied = copy.deepcopy(released)
    done = disguise(copied, drawn(3), example_inputs=example)
    before, after = outputs(released), outputs(copied)
    noise = noised(copy.deepcopy(released), NOISE)
    suspects: dict[str, Callable[[], nn.Module]] = {
        "disguised": lambda: copied,
        "noise, undisguised": lambda: copy.deepcopy(noise),
        "noise, disguised": lambda: disguised(copy.deepcopy(noise)),
        "stranger": lambda: disguised(build(name, 7)),
    }
    rows = {which: judge(make(), released, claim, example) for which, make in suspects.items()}
    return {
        "parameters": sum(parameter.numel() for parameter in released.parameters()),
        "outputs": float((before - after).abs().max() / before.abs().max()),
        "mixed": done.mixed,
        "permuted": done.permuted,
        "scaled": done.scaled,
        "suspects": rows,
    }


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# The full disguise, on many architectures",
        "",
        f"`{record['command']}`; {record['machine']}, torch {record['torch']}, timm "
        f"{record['timm']}. Weights drawn at random and marked in closed form. Outputs: largest "
        "difference by the disguise, relative to the largest output. Plain: bits of the disguised "
        "copy as they stand. Aligned: bits once the disguise was undone, on entries that were not "
        "used for it, of those that the undisguised model has there. Noise: the same with noise of "
        "30 % of every row below the disguise, beside the same entries of the noisy copy without "
        "it; strength of both, and its share. "
        "Seconds of processor time for the disguised copy and the stranger.",
        "",
        "| model | mixed, permuted groups | outputs | plain | aligned / same entries, of "
        "| likeness | noise: aligned / undisguised | strength | share "
        "| stranger: aligned, of | likeness | seconds |",
        "|---" * 12 + "|",
    ]
    for name, model in record["models"].items():
        if "error" in model:
            lines.append(f"| {name} | {model['error']} |" + " |" * 10)
            continue
        rows = model["suspects"]
        copied, noise, bare, stranger = (
            rows[which]
            for which in ("disguised", "noise, disguised", "noise, undisguised", "stranger")
        )

        def aligned(row: dict[str, Any]) -> str:
            if "aligned" not in row:
                return "accepted plainly" if row["accepted"] else "not judged"
            return f"{row['aligned']} / {row['same entries']}, {row['read']}"

        cells = (
            name,
            f"{model['mixed']}, {model['permuted']}",
            f"{model['outputs']:.0e}",
            f"{copied['plain']} / {copied['total']}",
            aligned(copied),
            f"{copied.get('likeness', float('nan')):.3f}",
            f"{noise.get('aligned', '')} / {bare.get('aligned', '')}",
            f"{noise.get('strength', '')} / {bare.get('strength', '')}",
            f"{_share(noise, bare)}",
            f"{stranger.get('aligned', '')}, {stranger.get('read', '')}",
            f"{stranger.get('likeness', float('nan')):.3f}",
            f"{copied['seconds']}, {stranger['seconds']}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    models = [model["suspects"] for model in record["models"].values() if "error" not in model]
    strangers = [rows["stranger"] for rows in models if "aligned" in rows["stranger"]]
    bits, read = (sum(row[key] for row in strangers) for key in ("aligned", "read"))
    deviation = (bits - read / 2) / math.sqrt(max(1, read) / 4)
    lines += [
        "",
        f"{len(models)} models. All strangers: {bits} of {read} bits, {deviation:+.1f} standard "
        f"deviations from a half; {sum(row['accepted'] for row in strangers)} accepted. A copy may "
        "be accepted as it stands (ecaresnet26t: a convolution over channels fixes the order of "
        "its streams); what an alignment leaves is shown all the same.",
    ]
    return "\n".join(lines) + "\n"


def _share(noise: dict[str, Any], bare: dict[str, Any]) -> str:
    """How much of the strength under noise alone is there below the disguise, too."""
    if not noise.get("strength") or not bare.get("strength"):
        return ""
    return f"{100 * noise['strength'] / bare['strength']:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[*MODELS, *OTHERS])
    parser.add_argument("--out", type=Path, default=RESULTS / "symmetries.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        **heading(
            "is every disguise that changes no output undone, on every architecture",
            "benchmarks.proof.symmetries",
        ),
        "timm": timm.__version__,
    }
    measure_models(arguments.out, record, arguments.models, measure, table)


if __name__ == "__main__":
    main()
