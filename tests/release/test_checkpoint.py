from __future__ import annotations

import collections
import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import passportize as pp
from passportize.errors import CheckpointError, InvalidArgument
from passportize.release.checkpoint import load_weights, save_weights
from passportize.release.weights_digest import weights_digest
from tests.support.small_protected import TinyNet, live


def same(left, right):
    assert set(left) == set(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def state():
    return TinyNet().state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {"state_dict": s}, "optimizer": {"state": {}}},
        lambda s: {"module." + name: value for name, value in s.items()},
        lambda s: {"_orig_mod." + name: value for name, value in s.items()},
        lambda s: {"module._orig_mod." + name: value for name, value in s.items()},
        lambda s: {
            "n_averaged": torch.tensor(5),
            **{"module." + name: value for name, value in s.items()},
        },
        lambda s: collections.OrderedDict(s),
    ],
)
def test_torch_files(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "weights.pt")
    loaded = load_weights(tmp_path / "weights.pt")
    same(loaded, state)
    assert list(loaded) == list(state)


def test_average_by_key(tmp_path, state):
    averaged = {name: value + 1 for name, value in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": averaged}, tmp_path / "c.pt")
    same(load_weights(tmp_path / "c.pt"), state)
    same(load_weights(tmp_path / "c.pt", key="state_dict_ema"), averaged)
    with pytest.raises(CheckpointError, match="under 'nothing'"):
        load_weights(tmp_path / "c.pt", key="nothing")


def test_safetensors_whatever_the_suffix(tmp_path, state):
    save_file(state, tmp_path / "weights.bin")
    same(load_weights(tmp_path / "weights.bin"), state)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def write_pickle(path):
    import pickle

    path.write_bytes(pickle.dumps(Evil()))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"\x00" * 200), "damaged"),
        (lambda path: path.write_bytes(b"\x40" + b"\x00" * 7 + b"{nonsense"), "damaged"),
        (lambda path: torch.save(nn.Linear(2, 2), path), "damaged"),
        (lambda path: torch.save([1, 2], path), "no state dict"),
        (lambda path: torch.save({"epoch": 1}, path), "it has: epoch"),
        (lambda path: path.mkdir(), "directory"),
        (write_pickle, "never loaded"),
    ],
)
def test_bad_files(tmp_path, capfd, write, reason):
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)
    # torch's own error says how to load it unsafely.
    assert "weights_only" not in str(caught.value)
    assert "executed" not in capfd.readouterr().out


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
def test_truncated_files(tmp_path, state, cut):
    for name, save in (("a.pt", torch.save), ("a.safetensors", save_file)):
        path = tmp_path / name
        save(state, path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * cut)])
        with pytest.raises(CheckpointError):
            load_weights(path)


def test_save_weights_copies_what_is_shared(tmp_path):
    tied = torch.randn(4, 4)
    save_weights(tmp_path / "w.safetensors", {"a": tied, "b": tied, "c": tied[1:]})
    same(load_weights(tmp_path / "w.safetensors"), {"a": tied, "b": tied, "c": tied[1:]})


@pytest.mark.parametrize("value", [3, torch.empty(2, device="meta")])
def test_save_weights_refuses_what_has_no_data(tmp_path, value):
    with pytest.raises(CheckpointError, match="'a'"):
        save_weights(tmp_path / "w.safetensors", {"a": value})
    assert not list(tmp_path.iterdir())


def test_host_state_dict_loads_strictly():
    model = copy.deepcopy(live("paper"))
    host = pp.host_state_dict(model)
    assert any(".passport." in name for name in model.state_dict())
    TinyNet().load_state_dict(host, strict=True)
    same(pp.host_state_dict(model.state_dict()), host)
    with pytest.raises(InvalidArgument):
        pp.host_state_dict(3)  # type: ignore[arg-type]


def test_weights_digest_sees_names_types_shapes_and_bytes():
    base = {"a": torch.arange(4.0), "b": torch.tensor(3)}
    digest = weights_digest(base)
    assert digest == weights_digest(dict(reversed(base.items())))
    assert digest == weights_digest({**base, "note": "no tensor"})
    changed = [
        {"a": base["a"], "c": base["b"]},
        {**base, "a": base["a"].double()},
        {**base, "a": base["a"].view(2, 2)},
        {**base, "a": torch.nextafter(base["a"], torch.tensor(9.0))},
        {"a": base["a"]},
    ]
    assert len({digest, *(weights_digest(other) for other in changed)}) == 6
    assert weights_digest({"a": torch.ones(2, 2).bfloat16(), "b": torch.ones(()).bool()})
    sparse = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    assert weights_digest({"a": sparse.to_sparse()}) == weights_digest({"a": sparse})
    with pytest.raises(CheckpointError, match="dense"):
        weights_digest({"a": torch.ones(2, 2, device="meta")})
