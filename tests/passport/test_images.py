from __future__ import annotations

import struct

import pytest
import torch
from torch import nn

import tests.support.independent_passport as independent
from passportize.errors import ExampleInputFailed, InvalidArgument
from passportize.passport.images import PassportImages
from passportize.passport.mean_patch import record_patches
from passportize.passport.passport import Passport
from passportize.signature.formulations import part_vectors
from passportize.signature.rows import anchor_rows
from passportize.signature.site import AnchorPart

SECRET = bytes(range(32))


class Net(nn.Module):
    """Strides, groups, dilation, circular padding, a shared layer, a linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4, bias=False)
        self.circular = nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular", bias=False)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.dropout = nn.Dropout(0.5)
        self.unused = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(6, 5, bias=False)

    def forward(self, x):
        x = self.depthwise(torch.relu(self.norm(self.stem(x))))
        x = self.circular(self.circular(self.grouped(x)))
        return self.head(self.dropout(self.up(x)).flatten(2).transpose(1, 2)).mean(1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def pictures():
    torch.manual_seed(1)
    return torch.rand(3, 17, 15), torch.rand(2, 3, 17, 15)


def averages(net, picture):
    """Avg over batch, positions and calls of every layer's own output: the published response."""
    found = {}
    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def keep(module, inputs, output, name=name):
                channels = output.movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
                found.setdefault(f"{name}.weight", []).append(channels.flatten(1).mean(1))

            hooks.append(module.register_forward_hook(keep))
    with torch.no_grad():
        net.eval()(picture if picture.dim() == 4 else picture[None])
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(outputs).mean(0) for name, outputs in found.items()}


def test_patches_give_the_published_responses_of_every_layer(net, pictures):
    patches = record_patches(net, *pictures)
    expected = [averages(net, picture) for picture in pictures]
    assert (
        set(patches)
        == set(expected[0])
        == {f"{name}.weight" for name in ("stem", "depthwise", "grouped", "circular", "head")}
    )
    for name, patch in patches.items():
        weight = net.get_parameter(name)
        part = AnchorPart(name, len(weight), groups=len(patch))
        vectors = part_vectors(patches, part).values
        rows = anchor_rows(weight, part).detach()
        if vectors.dim() == 2:
            responses = rows @ vectors
        else:
            grouped = rows.reshape(len(vectors), -1, rows.shape[1])
            responses = torch.bmm(grouped, vectors).flatten(0, 1)
        wanted = torch.stack([expected[0][name], expected[1][name]], dim=-1)
        torch.testing.assert_close(responses, wanted, rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was(net, pictures):
    net.train()
    net.norm.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    record_patches(net, *pictures)
    assert [m.training for m in net.modules()] == [m is not net.norm for m in net.modules()]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_rows_laid_side_by_side_repeat_the_vector(net, pictures):
    patches = record_patches(net, *pictures)
    part = AnchorPart("stem.weight", 4, repeats=2)
    vectors = part_vectors(patches, part).values
    rows = anchor_rows(net.stem.weight, part).detach()
    whole = net.stem.weight.detach().flatten(1) @ patches["stem.weight"][0]
    torch.testing.assert_close(rows @ vectors, whole[:4] + whole[4:])


@pytest.mark.parametrize(
    "part",
    [
        AnchorPart("stem.weight", 3, axis="input"),
        AnchorPart("up.weight", 6, transposed=True),
        AnchorPart("unused.weight", 3),
        AnchorPart("grouped.weight", 3, start=3, groups=4),
        AnchorPart("grouped.weight", 12),
    ],
)
def test_what_the_paper_does_not_know_has_none(net, pictures, part):
    assert part_vectors(record_patches(net, *pictures), part) is None


def test_another_model_is_noticed(net, pictures):
    patches = record_patches(net, *pictures)
    part = AnchorPart("stem.weight", 4, repeats=2)
    assert part_vectors(patches, part, fan_in=54) is not None
    with pytest.raises(InvalidArgument, match=r"54 entries for stem\.weight, the model has 27"):
        part_vectors(patches, part, fan_in=27)


@pytest.mark.parametrize("shape", [(1, 17, 15), (17, 15), (3, 1, 1, 1, 1)])
def test_pictures_that_the_model_does_not_take(net, shape):
    net.train()
    with pytest.raises(ExampleInputFailed, match="Net"):
        record_patches(net, torch.rand(shape), torch.rand(shape))
    assert all(module.training for module in net.modules())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_passports_keep_and_bind_what_the_layers_saw(net, pictures, tmp_path):
    plain = Passport.generate("Acme", date="2026-11-23", secret=SECRET)
    bare = plain.with_images(*pictures)
    full = plain.with_images(*pictures, net)
    part = AnchorPart("stem.weight", 8)
    assert plain.images is None
    assert part_vectors(bare.images.patches, part) is None
    recorded = record_patches(net, *pictures)["stem.weight"][0]
    torch.testing.assert_close(part_vectors(full.images.patches, part).values, recorded)
    assert len({plain.commitment(), bare.commitment(), full.commitment()}) == 3
    with torch.no_grad():
        net.stem.weight.mul_(1.01)
    assert plain.with_images(*pictures, net) != full
    full.save(tmp_path / "p", "pw")
    loaded = Passport.load(tmp_path / "p", "pw")
    assert loaded == full
    assert torch.equal(
        part_vectors(loaded.images.patches, part).values,
        part_vectors(full.images.patches, part).values,
    )


def test_digest_covers_the_patches_as_described():
    gamma, beta = torch.ones(1, 2, 2, dtype=torch.uint8), torch.full((1, 2, 2), 0.5)
    patch = torch.arange(8.0).reshape(1, 4, 2)
    images = PassportImages(gamma, beta, {"b.weight": patch, "a.weight": -patch})
    floats = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert images.digest() == independent.images_digest(
        ("gamma", "uint8", (1, 2, 2), b"\1" * 4),
        ("beta", "float32", (1, 2, 2), struct.pack("<4f", *[0.5] * 4)),
        ("patch/a.weight", "float32", (1, 4, 2), struct.pack("<8f", *[-x for x in floats])),
        ("patch/b.weight", "float32", (1, 4, 2), struct.pack("<8f", *floats)),
    )
    assert PassportImages.from_bytes(images.to_bytes()).digest() == images.digest()


def test_bytes_are_divided_by_255(net, pictures):
    plain = Passport.generate("Acme", date="2026-11-28", secret=SECRET)
    raw = (pictures[0] * 255).to(torch.uint8)
    one = part_vectors(
        plain.with_images(raw, raw, net).images.patches, AnchorPart("stem.weight", 8)
    )
    two = part_vectors(
        plain.with_images(raw / 255.0, raw / 255.0, net).images.patches,
        AnchorPart("stem.weight", 8),
    )
    assert torch.equal(one.values, two.values)
