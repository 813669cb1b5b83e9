import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tdnet import build_model, checkpoints, load_checkpoint, save_checkpoint
from tdnet.checkpoints import PUBLISHED_MODELS, from_espnetv2, from_published, published_name
from tdnet.models.espnetv2_names import espnetv2_name


def published_weights(model):
    """The weights of one of our models in the published layout."""
    weights = {}
    for own, tensor in model.state_dict().items():
        name = published_name(own, model.config.num_paths)
        assert name not in weights
        is_phi = name.startswith("atn") and name.endswith("weight")
        weights[name] = (tensor[..., None, None] if is_phi else tensor).clone()
    return weights


@pytest.fixture(scope="module")
def pspnet():
    return build_model("pspnet-18", 4)


@pytest.fixture(scope="module")
def bisenet():
    return build_model("td4-bise18", 4, norm_size=(9, 13))


@pytest.fixture(scope="module")
def td2():
    return build_model("td2-psp50", 4, pooling_mode="subsample", norm_size=(9, 13))


def assert_same_weights(a, b):
    assert a.config == b.config
    assert a.state_dict().keys() == b.state_dict().keys()
    others = b.state_dict()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, others[name]), name


class TestNative:
    @pytest.mark.parametrize("name", ["pspnet", "td2", "bisenet"])
    def test_round_trip(self, name, request, tmp_path):
        model = request.getfixturevalue(name)
        save_checkpoint(model, tmp_path / "model.safetensors")
        loaded = load_checkpoint(tmp_path / "model.safetensors")
        assert_same_weights(loaded, model)
        assert not loaded.training
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    def test_failure_keeps_the_old_file(self, pspnet, tmp_path, monkeypatch):
        path = tmp_path / "model.safetensors"
        path.write_text("old")

        def half_written(tensors, target, metadata):
            target.write_text("half")
            raise OSError("disk full")

        monkeypatch.setattr(checkpoints, "save_file", half_written)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(pspnet, path)
        assert path.read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    def test_bad_targets(self, pspnet, tmp_path):
        with pytest.raises(ValueError, match=r"ending in \.safetensors"):
            save_checkpoint(pspnet, tmp_path / "model.pkl")
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            save_checkpoint(pspnet, tmp_path / "missing" / "model.safetensors")

    @pytest.mark.parametrize("kept", [0, 5, 1000, 100_000])
    def test_truncated(self, pspnet, tmp_path, kept):
        path = tmp_path / "model.safetensors"
        save_checkpoint(pspnet, path)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ValueError, match=r"cannot read .*damaged") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)

    def test_another_model_than_expected(self, pspnet, tmp_path):
        save_checkpoint(pspnet, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="expected td4-psp18, got pspnet-18"):
            load_checkpoint(tmp_path / "model.safetensors", "td4-psp18")

    def test_foreign_file(self, tmp_path):
        save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="expected the format 'tdnet-1', got None"):
            load_checkpoint(tmp_path / "model.safetensors")

    def edited(self, model, tmp_path, weights=None, config=None):
        path = tmp_path / "model.safetensors"
        save_checkpoint(model, path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if weights is not None:
            weights(tensors)
        if config is not None:
            metadata["config"] = config(metadata["config"])
        save_file(tensors, path, metadata)
        return path

    def test_weights_that_do_not_fit(self, pspnet, tmp_path):
        def edit(tensors):
            del tensors["features.backbone.conv1.weight"]
            tensors["extra"] = torch.ones(1)
            tensors["head.classifier.bias"] = torch.ones(9)

        with pytest.raises(ValueError, match="do not fit pspnet-18") as caught:
            load_checkpoint(self.edited(pspnet, tmp_path, weights=edit))
        assert "1 missing: features.backbone.conv1.weight" in str(caught.value)
        assert "1 unknown: extra" in str(caught.value)
        assert "head.classifier.bias: expected [4], got [9]" in str(caught.value)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '"name"', "null"])
    def test_bad_config(self, pspnet, tmp_path, text):
        with pytest.raises(ValueError, match="does not say which model"):
            load_checkpoint(self.edited(pspnet, tmp_path, config=lambda _: text))

    def test_attributes_that_a_file_leaves_out_are_those_of_the_model(self, td2, tmp_path):
        def edit(config):
            told = json.loads(config)
            return json.dumps(
                {key: told[key] for key in told if key not in ("backbone", "num_paths")}
            )

        assert_same_weights(load_checkpoint(self.edited(td2, tmp_path, config=edit)), td2)

    def test_unknown_model(self, pspnet, tmp_path):
        def edit(config):
            return json.dumps(json.loads(config) | {"name": "td9"})

        with pytest.raises(ValueError, match=r"name: expected one of .*, got 'td9'"):
            load_checkpoint(self.edited(pspnet, tmp_path, config=edit))


class TestPublished:
    @pytest.mark.parametrize("name", PUBLISHED_MODELS)
    def test_model_is_told_from_the_names(self, name):
        options = {"pooling_mode": "subsample", "norm_size": (9, 13)} if "td" in name else {}
        model = build_model(name, 4, **options)
        assert_same_weights(from_published(published_weights(model)), model)

    def test_file_of_the_training(self, td2, tmp_path):
        weights = {f"module.{key}": value for key, value in published_weights(td2).items()}
        weights["module.auxlayer1.conv5.0.weight"] = torch.ones(2)
        weights["module.pretrained2.fc.weight"] = torch.ones(2)
        torch.save({"epoch": 3, "model_state": weights}, tmp_path / "best.pkl")
        loaded = load_checkpoint(tmp_path / "best.pkl", "td2-psp50")
        assert_same_weights(loaded, td2)
        assert not loaded.training
        assert_same_weights(load_checkpoint(tmp_path / "best.pkl"), td2)

    def test_tensors_are_copied(self, pspnet):
        weights = published_weights(pspnet)
        loaded = from_published(weights, "pspnet-18")
        weights["pretrained.bn1.weight"].fill_(5)
        assert not torch.equal(
            loaded.features.backbone.bn1.weight, weights["pretrained.bn1.weight"]
        )

    def test_counters_of_old_files_may_be_absent(self, pspnet):
        weights = published_weights(pspnet)
        kept = {key: value for key, value in weights.items() if "num_batches" not in key}
        assert len(kept) < len(weights)
        from_published(kept, "pspnet-18")

    def test_weights_that_do_not_fit(self, td2):
        weights = published_weights(td2)
        del weights["atn2.fc.0.conv.bias"]
        weights["atn1_2.fc.0.conv.bias"] = torch.ones(512)
        weights["enc1.w_vs.0.conv.bias"] = torch.ones(3)
        with pytest.raises(ValueError, match="do not fit td2-psp50") as caught:
            from_published(weights, "td2-psp50")
        assert "1 missing: atn2.fc.0.conv.bias" in str(caught.value)
        assert "1 unknown: atn1_2.fc.0.conv.bias" in str(caught.value)
        assert "enc1.w_vs.0.conv.bias: expected [512], got [3]" in str(caught.value)

    def test_another_model_lists_some_and_counts_all(self, pspnet):
        with pytest.raises(
            ValueError, match=r"do not fit td4-psp18; \d{3,} missing: .*and \d+ more"
        ):
            from_published(published_weights(pspnet), "td4-psp18")

    @pytest.mark.parametrize(
        ("state", "error", "message"),
        [
            ([1, 2], TypeError, "expected a dict"),
            ({}, TypeError, "expected a dict"),
            ({"a": 1}, TypeError, "expected names and tensors, got 'a': a int"),
            ({"a": torch.ones(1)}, ValueError, "cannot tell the model"),
        ],
    )
    def test_no_checkpoint(self, state, error, message):
        with pytest.raises(error, match=message):
            from_published(state)

    def test_unknown_name(self, pspnet):
        with pytest.raises(ValueError, match=r"name: expected one of .*, got 'td9'"):
            from_published(published_weights(pspnet), "td9")


@pytest.fixture(scope="module")
def espnetv2():
    return build_model("espnetv2", 19)


class TestEspnetv2:
    def weights(self, model):
        """The weights of one of our models, with a background, as the authors name them."""
        weights = {espnetv2_name(own): tensor for own, tensor in model.state_dict().items()}
        assert len(weights) == len(model.state_dict())
        for name in ("bu_dec_l4.merge_layer.3.weight", "bu_dec_l4.merge_layer.3.bias"):
            weights[name] = torch.cat((weights[name], weights[name][:1]))
        for level in (2, 3, 4):
            weights[f"base_net.level{level}_0.eesp.module_act.weight"] = torch.ones(5)
        return weights

    def test_names(self):
        expected = {
            "features.backbone.stem.norm.bias": "base_net.level1.bn.bias",
            "features.backbone.down4.unit.branches.2.weight": (
                "base_net.level2_0.eesp.spp_dw.2.conv.weight"
            ),
            "features.backbone.down8.remind.1.norm.bias": "base_net.level3_0.inp_reinf.1.bn.bias",
            "features.backbone.units16.6.act.weight": "base_net.level4.6.module_act.weight",
            "features.decoder.1.merged.act.weight": "bu_br_l3.1.weight",
            "features.decoder.0.shortcut.reduce.norm.bias": (
                "merge_enc_dec_l2.expansion_layer.cbr.1.bias"
            ),
            "head.joined.act.weight": "bu_dec_l4.merge_layer.0.br.1.weight",
        }
        assert {own: espnetv2_name(own) for own in expected} == expected
        with pytest.raises(ValueError, match=r"own: expected a weight of .*, got 'norm\.bias'"):
            espnetv2_name("norm.bias")

    @pytest.mark.parametrize("name", [None, "espnetv2"])
    def test_the_background_is_left_out(self, espnetv2, tmp_path, name):
        torch.save(self.weights(espnetv2), tmp_path / "model.pth")
        loaded = load_checkpoint(tmp_path / "model.pth", name)
        assert_same_weights(loaded, espnetv2)
        assert not loaded.training

    @pytest.mark.parametrize("classes", [1, 4, 21])
    def test_of_other_numbers_of_classes_all_are_kept(self, classes):
        """PASCAL VOC has 21, the first of which is the background."""
        model = build_model("espnetv2", classes)
        weights = {espnetv2_name(own): tensor for own, tensor in model.state_dict().items()}
        assert_same_weights(from_espnetv2(weights), model)

    def test_weights_that_do_not_fit(self, espnetv2):
        weights = self.weights(espnetv2)
        del weights["bu_br_l2.0.bias"]
        weights["bu_dec_l4.merge_layer.3.bias"] = torch.tensor(1.0)
        with pytest.raises(ValueError, match="do not fit espnetv2; 1 missing: bu_br_l2") as caught:
            from_espnetv2(weights)
        assert "bu_dec_l4.merge_layer.3.bias: expected [19], got []" in str(caught.value)

    def test_another_model(self, pspnet):
        with pytest.raises(ValueError, match="do not fit espnetv2"):
            from_espnetv2(published_weights(pspnet))


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_pickles_cannot_run_code(tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(ValueError, match="cannot read"):
        load_checkpoint(tmp_path / "model.pkl")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and no more"])
def test_damaged_pickles(tmp_path, content):
    (tmp_path / "model.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*damaged") as caught:
        load_checkpoint(tmp_path / "model.pkl")
    assert "\n" not in str(caught.value)


def test_pickle_of_something_else(tmp_path):
    torch.save([1, 2], tmp_path / "model.pkl")
    with pytest.raises(ValueError, match=r"model\.pkl: this is no published checkpoint"):
        load_checkpoint(tmp_path / "model.pkl")


def test_no_such_file_and_wrong_suffix(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        load_checkpoint(tmp_path / "model.pkl")
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"expected a suffix among \.safetensors.*, got '\.onnx'"):
        load_checkpoint(tmp_path / "model.onnx")
