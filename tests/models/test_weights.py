"""Weights from files and names, the registry, and stages."""

import pickle
import urllib.error

import pytest
import torch
from torch import nn

from fastvision import models
from fastvision.models import _weights


def small():
    return models.get_model("lenet5")


def test_files(tmp_path):
    state = {name: torch.rand_like(t) for name, t in small().state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    torch.save({"model": state, "average": None}, tmp_path / "checkpoint.pt")
    average = {"n_averaged": torch.tensor(1), **{f"module.{k}": v for k, v in state.items()}}
    others = small().state_dict()
    torch.save({"model": others, "average": average}, tmp_path / "averaged.pt")
    sources = [state, *(tmp_path / name for name in ("a.pth", "averaged.pt"))]
    sources.append(str(tmp_path / "checkpoint.pt"))
    pytest.importorskip("safetensors.torch").save_file(state, tmp_path / "a.safetensors")
    sources.append(tmp_path / "a.safetensors")
    for weights in sources:
        model = models.get_model("lenet5", weights=weights)
        for name, t in model.state_dict().items():
            assert torch.equal(t, state[name])


class Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file ran')",))


@pytest.mark.parametrize(
    "content", [Code(), nn.Linear(1, 1), [1, 2], {"a": Code()}], ids=["code", "model", "list", "in"]
)
def test_files_that_hold_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"weights: .*a\.pth"):
        models.get_model("lenet5", weights=tmp_path / "a.pth")


def test_other_files_and_types(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "broken.pth").write_bytes(pickle.dumps(3)[:-1])
    for name in ("broken.safetensors", "broken.pth"):
        with pytest.raises(ValueError, match=rf"weights: .*{name}"):
            models.get_model("lenet5", weights=tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing"):
        models.get_model("lenet5", weights="~/missing.pth")
    with pytest.raises(ValueError, match="IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        models.resnet50(weights="IMAGENET")
    with pytest.raises(TypeError, match="weights must be .* got int"):
        models.get_model("lenet5", weights=3)


@pytest.mark.parametrize("name", ["lenet5", "small_ssd", "unet"])
@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [(nn.DataParallel, "module."), (torch.compile, "_orig_mod.")],
    ids=["DataParallel", "compile"],
)
def test_weights_of_wrappers(tmp_path, name, wrap, prefix):
    state = wrap(models.get_model(name)).state_dict()
    torch.save(state, tmp_path / "wrapped.pth")
    for weights in (state, tmp_path / "wrapped.pth"):
        with pytest.raises(ValueError, match=rf"weights must .*{wrap.__name__}.*'{prefix}'"):
            models.get_model(name, weights=weights)
    inside = {key.removeprefix(prefix): value for key, value in state.items()}
    models.get_model(name, weights=inside)


def test_downloads(monkeypatch, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def download(url, **options):
        asked.append(url)
        assert options["check_hash"] and options["weights_only"]
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    enum = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    for weights in ("DEFAULT", "IMAGENET1K_V1", enum):
        with pytest.raises(ConnectionError, match="checkpoints, or pass its path as weights"):
            models.resnet18(weights=weights)
    assert asked == [enum.url] * 3


def test_files_of_earlier_downloads(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / _weights.addresses("resnet18")["DEFAULT"].split("/")[-1]
    file.parent.mkdir()
    state = models.resnet18().state_dict()
    torch.save(state, file)
    loaded = models.resnet18(weights="DEFAULT").state_dict()
    assert all(torch.equal(t, state[name]) for name, t in loaded.items())
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"weights: .*{file.name} does not hold a state dict"):
        models.resnet18(weights="DEFAULT")


def test_every_address_is_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    for name in (n for n in models.list_models() if _weights.addresses(n)):
        theirs = torchvision.models.get_model_weights(name)
        ours = _weights.addresses(name)
        assert ours == {n: theirs[n].url for n in (*theirs.__members__, "DEFAULT")}


def test_stages():
    backbone = models.Stages(models.resnet18(), {"layer2": "2", "layer4": "4"}).eval()
    assert {n: t.shape[1:] for n, t in backbone(torch.rand(1, 3, 64, 64)).items()} == {
        "2": (128, 8, 8),
        "4": (512, 2, 2),
    }
    assert "fc.weight" not in backbone.state_dict() and "conv1.weight" in backbone.state_dict()
    for wrong in ({}, {"layer9": "a"}, {"layer1": "a", "layer2": "a"}):
        with pytest.raises(ValueError, match="stages"):
            models.Stages(models.resnet18(), wrong)
