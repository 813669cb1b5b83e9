import json
from dataclasses import fields, replace

import pytest

from tdnet.architectures import MODELS, ModelConfig
from tdnet.models import TDNet, build
from tdnet.models.aggregation import SpatioTemporalAttention


@pytest.mark.parametrize("name", MODELS)
def test_json_is_read_back(name):
    config = replace(MODELS[name], num_classes=7, norm_size=(9, 13), pooling_mode="subsample")
    config = replace(config, aggregation="add", shared=True)
    text = config.to_json()
    assert ModelConfig.from_json(text) == config
    assert json.loads(text).keys() == {field.name for field in fields(ModelConfig)}


def test_what_an_older_file_leaves_out_is_as_in_the_row():
    assert ModelConfig.from_json('{"name": "td2-psp50"}') == MODELS["td2-psp50"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet-19"}, "backbone: expected one of resnet-18, .*, got 'resnet-19'"),
        ({"backbone": 18}, "backbone: expected one of .*, got 18"),
        ({"features": "unet"}, "features: expected one of pyramid, .*, got 'unet'"),
        ({"features": "espnet"}, "features: expected espnet for .*, got espnet for resnet-18"),
        ({"backbone": "espnetv2"}, "features: expected espnet .*, got pyramid for espnetv2"),
        ({"num_paths": 0}, "num_paths: expected an integer from 1 to 16, got 0"),
        ({"num_paths": 17}, "num_paths: expected an integer from 1 to 16, got 17"),
        ({"value_channels": True}, "value_channels: expected an integer from 1 to .*, got True"),
        ({"head_channels": "9"}, "head_channels: expected an integer from 1 to .*, got '9'"),
        ({"aggregation": "mean"}, "aggregation: expected one of apm, .*, got 'mean'"),
        ({"shared": 1}, "shared: expected True or False, got 1"),
        ({"norm_size": [9, 13]}, "norm_size: expected .height, width., got a list"),
    ],
)
def test_values_that_no_model_has(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(MODELS["td4-psp18"], **changes)


def test_attributes_that_no_model_has():
    with pytest.raises(
        ValueError, match="'colour': no attribute of a model: name, backbone, features"
    ):
        ModelConfig.from_json('{"name": "td4-psp18", "colour": 1}')


def test_every_attribute_reaches_the_model():
    config = replace(
        MODELS["td4-psp18"],
        num_paths=3,
        head_channels=5,
        num_classes=7,
        value_channels=24,
        pooling_mode="subsample",
        pooling_stride=2,
        norm_size=(9, 13),
        aggregation="sta",
    )
    model = build(config)
    assert isinstance(model, TDNet)
    assert model.config == config
    assert len(model.paths) == 3
    path = model.paths[2]
    assert len(path.hops) == 2
    assert path.hops[0].phi.weight.shape == (24, 24)
    assert (path.encoding.pooling_mode, path.encoding.pooling_stride) == ("subsample", 2)
    assert isinstance(path.hops, SpatioTemporalAttention)
    assert path.norm.weight.shape == (9, 13)
    assert path.head.hidden.conv.weight.shape[:2] == (5, 24)
    assert path.head.classifier.weight.shape[:2] == (7, 5)


def test_a_tdnet_has_several_paths():
    with pytest.raises(ValueError, match="num_paths: expected at least 2, got 1"):
        TDNet(MODELS["pspnet-18"])
