"""Files that are no good checkpoints: each a ValueError of one line that says what, never a crash,
never an advice to trust the file."""

import json
import os
import pickle
import random
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tdnet import build_model, load_checkpoint
from tdnet.checkpoints import from_published, published_name

CONFIG = {
    "name": "td4-psp18",
    "num_classes": 4,
    "pooling_mode": "max",
    "pooling_stride": 4,
    "norm_size": [9, 13],
}


@pytest.fixture(scope="module")
def pspnet():
    return build_model("pspnet-18", 4).eval()


@pytest.fixture
def published(pspnet):
    return {
        published_name(own, pspnet.config.num_paths): t.clone()
        for own, t in pspnet.state_dict().items()
    }


def refusal(path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    assert len(message) < 1500 + len(str(path))
    assert "trust" not in message
    assert "weights_only" not in message
    return message


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("score", [np.float64(0.7), np.float32(0.7), np.int64(3)], ids=repr)
def test_the_best_model_of_the_published_training(published, pspnet, tmp_path, module, score):
    """Under the names that NumPy 1 and NumPy 2 write, whichever is installed."""
    path = tmp_path / "best.pkl"
    state = {f"module.{key}": value for key, value in published.items()}
    content = {"epoch": 3, "model_state": state, "best_iou": score}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    data, count = re.subn(rb"cnumpy\._?core\.", b"c" + module + b".", path.read_bytes())
    assert count == 1
    path.write_bytes(data)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.features.backbone.conv1.weight, pspnet.features.backbone.conv1.weight)


def test_a_number_of_numpy_in_place_of_weights_is_called_so(tmp_path):
    torch.save({"best_iou": np.float64(0.7), "state_dict": {}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="names and tensors, got 'best_iou': a number of NumPy"):
        load_checkpoint(tmp_path / "a.pth")


def test_the_names_of_numpy_are_not_left_allowed(tmp_path):
    torch.save({"best_iou": np.float64(0.7)}, tmp_path / "a.pkl")
    refusal(tmp_path / "a.pkl")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pkl", weights_only=True)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers(published, pspnet, prefix):
    loaded = from_published({prefix + key: value for key, value in published.items()})
    assert torch.equal(loaded.features.backbone.conv1.weight, pspnet.features.backbone.conv1.weight)


def test_a_prefix_inside_a_name_and_one_name_twice(published):
    key = "pretrained.layer1.0.conv1.weight"
    published["pretrained._orig_mod.layer1.0.conv1.weight"] = published.pop(key)
    from_published(published)
    published[key] = published["pretrained._orig_mod.layer1.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"pretrained\.layer1\.0\.conv1\.weight.* is there twice"):
        from_published(published)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to(torch.int8), r"conv1\.weight: expected float32, got torch\.int8"),
        (lambda w: w > 0, r"conv1\.weight: expected float32, got torch\.bool"),
        (lambda w: w.to(torch.complex64), r"conv1\.weight: .* got torch\.complex64"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), r"got torch\.qint8"),
        (lambda w: w.to_sparse(), "no plain tensor in memory"),
        (lambda w: w.to("meta"), "no plain tensor in memory"),
        (lambda w: torch.ones(1).expand(w.shape), "one number under many places"),
        (lambda w: w * float("nan"), r"1 with NaN or infinity .*conv1\.weight"),
        (lambda w: w + float("inf"), r"1 with NaN or infinity .*conv1\.weight"),
        (lambda w: w.double() + 1e300, r"1 with NaN or infinity \(as float32\)"),
        (lambda w: w[0], r"conv1\.weight: expected \[64, 3, 7, 7\], got \[3, 7, 7\]"),
    ],
)
def test_weights_that_no_model_has(published, change, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about kinds of tensors
        published["pretrained.conv1.weight"] = change(published["pretrained.conv1.weight"])
    with pytest.raises(ValueError, match=message):
        from_published(published)


def test_negative_variances_and_other_counters(published):
    published["pretrained.bn1.running_var"][3] = -1
    with pytest.raises(ValueError, match=r"1 variances below 0: pretrained\.bn1\.running_var"):
        from_published(published)
    published["pretrained.bn1.running_var"][3] = 1
    published["pretrained.bn1.num_batches_tracked"] = torch.tensor(True)
    with pytest.raises(ValueError, match=r"num_batches_tracked: expected int64, got torch\.bool"):
        from_published(published)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(published, pspnet, dtype):
    loaded = from_published({k: v.to(dtype) if v.dim() else v for k, v in published.items()})
    assert loaded.features.backbone.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(
        loaded.features.backbone.conv1.weight,
        pspnet.features.backbone.conv1.weight,
        rtol=1e-2,
        atol=1e-2,
    )


def native(path, config, tensors=None, version="tdnet-1"):
    text = config if isinstance(config, str) else json.dumps(config)
    save_file(tensors or {"a": torch.ones(1)}, path, {"format": version, "config": text})
    return path


NUMBERS = [-1, 0, 2**31, 10**30, 1e9, True, None, "4", [4], {}, float("inf"), float("nan")]


@pytest.mark.parametrize("value", NUMBERS, ids=str)
@pytest.mark.parametrize("key", ["num_classes", "pooling_stride", "norm_size"])
def test_hostile_numbers(tmp_path, key, value):
    config = CONFIG | {key: [9, value] if key == "norm_size" else value}
    message = refusal(native(tmp_path / "m.safetensors", config))
    named = re.search(rf"\b{key}(\[\d\])?: expected", message)
    assert named or "does not say" in message


@pytest.mark.parametrize(
    "config",
    [
        "[" * 200_000,
        '{"name": ' * 100_000,
        "1" * 100_000,
        "\x00",
        json.dumps(CONFIG | {"name": "x" * 10**6}),
        json.dumps(CONFIG | {"name": "a\nb\x1b[31m"}),
        json.dumps(CONFIG | {"name": ["td4-psp18"]}),
        json.dumps(CONFIG | {"name": {"a": 1}}),
        json.dumps(CONFIG | {"pooling_mode": "mean"}),
        json.dumps(CONFIG | {"pooling_mode": None}),
        json.dumps(CONFIG | {"norm_size": 5}),
        json.dumps(CONFIG | {"norm_size": "99"}),
        json.dumps(CONFIG | {"norm_size": []}),
    ],
    ids=range(13),
)
def test_hostile_metadata(tmp_path, config):
    refusal(native(tmp_path / "m.safetensors", config))


@pytest.mark.parametrize("change", [{"num_classes": 10**9}, {"norm_size": [2**31 - 1] * 2}])
def test_sizes_beyond_the_memory_are_never_allocated(tmp_path, change):
    message = refusal(native(tmp_path / "m.safetensors", CONFIG | change))
    assert "do not fit td4-psp18" in message or "larger than tensors can be" in message


def test_long_and_strange_names(tmp_path):
    tensors = {"x" * 10**5: torch.ones(1), "a\nb\x1b[31m": torch.ones(1)}
    message = refusal(native(tmp_path / "m.safetensors", CONFIG, tensors))
    assert r"a\nb\x1b[31m" in message


def test_a_format_of_another_version(tmp_path):
    assert "'tdnet-9" in refusal(native(tmp_path / "m.safetensors", CONFIG, version="tdnet-9" * 99))


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("harm",))


@pytest.mark.parametrize(
    "content",
    [
        {"model_state": {"a": Harmful()}},
        {"epoch": Harmful()},
        {"a": np.arange(3)},
        torch.nn.Linear(1, 1),
        {1: torch.ones(1)},
        {"model_state": [torch.ones(1)]},
        {"model_state": {}},
        {"x" * 10**6: torch.ones(1)},
        {"a": "x" * 10**6},
        None,
        torch.ones(1),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_something_else(tmp_path, monkeypatch, content, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "m.pkl", _use_new_zipfile_serialization=zipped)
    refusal(tmp_path / "m.pkl")
    assert not (tmp_path / "harm").exists()


def test_what_is_refused_is_named(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "m.pkl")
    assert "got torch.nn.modules.linear.Linear" in refusal(tmp_path / "m.pkl")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_pickles(tmp_path, protocol):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"a": 1}, protocol))
    refusal(tmp_path / "m.pkl")


def test_folders_and_pipes_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "m.pkl")
    (tmp_path / "m.safetensors").mkdir()
    for name in ("m.pkl", "m.safetensors"):
        with pytest.raises(FileNotFoundError, match="there is no checkpoint file"):
            load_checkpoint(tmp_path / name)


def test_a_name_that_is_no_utf8(published, tmp_path):
    path = tmp_path / os.fsdecode(b"m\xff.pkl")
    torch.save(published, path)
    load_checkpoint(path)


@pytest.mark.parametrize("kind", ["native", "zip", "legacy"])
def test_mutated_files(tmp_path, kind):
    """Bytes of small files changed, cut or swapped at random: a model never comes of it."""
    path = tmp_path / ("m.safetensors" if kind == "native" else "m.pkl")
    if kind == "native":
        native(path, CONFIG, {"head.weight": torch.ones(4), "b": torch.zeros(2, 2)})
    else:
        state = {"pretrained.bn1.weight": torch.ones(4), "b": torch.zeros(2, 2)}
        content = {"epoch": 3, "model_state": state, "best_iou": np.float64(0.5)}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    original = path.read_bytes()
    chance = random.Random(0)
    for _ in range(150):
        data = bytearray(original)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.choice(
                [0, 1, 0x7F, 0xFF, chance.getrandbits(8)]
            )
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        path.write_bytes(data)
        refusal(path)
