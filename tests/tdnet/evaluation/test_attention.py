"""Weights over the window against the definitions of Eq. 4 and 5."""

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tdnet import build_model, save_checkpoint
from tdnet.architectures import ModelConfig
from tdnet.cli.app import app
from tdnet.evaluation.attention import look, weights_over_window, write_page, write_picture
from tdnet.models import build
from tdnet.preprocessing import images_of

SIZE = (65, 97)


@pytest.fixture(scope="module")
def tiny4():
    torch.manual_seed(0)
    config = ModelConfig("td4-bise18", "resnet-18", "bilateral", 4, 8, 3, 8, norm_size=(5, 7))
    model = build(config).eval()
    with torch.no_grad():
        for path in model.paths:  # so that a pixel does not look everywhere alike
            for projection in (path.encoding.query, path.encoding.key):
                projection.norm.running_var.fill_(0.01)
                projection.project.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def tiny_sta(tiny4):
    model = build(dataclasses.replace(tiny4.config, aggregation="sta")).eval()
    model.load_state_dict(tiny4.state_dict())
    return model


@pytest.fixture(scope="module")
def frames():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(4)]


def affinity(query, key):
    """softmax(q k^T / sqrt(64)), `[N, M]`."""
    q, k = (x[0].flatten(1) for x in (query, key))
    return (q.T @ k / 8).softmax(-1)


@torch.inference_mode()
def test_weights_are_rows_of_products_of_affinities(tiny4, frames):
    images = [images_of(torch.from_numpy(frame)[None]) for frame in frames]
    window = [
        tiny4.store(tiny4.encode(image, place), place)
        for image, place in zip(images[:3], (3, 0, 1), strict=True)
    ]
    query = tiny4.encode(images[3], 2).query
    product = affinity(query, window[2].key)
    expected = [product]
    for newer, older in ((2, 1), (1, 0)):
        product = product @ affinity(window[newer].query, window[older].key)
        expected.insert(0, product)
    seen = look(tiny4, frames, 3)
    # 65 x 97 pixels are 9 x 13 features, 3 x 4 when pooled.
    found = weights_over_window(seen, (24, 40))
    assert [weights.shape for weights in found] == [(3, 4)] * 3
    for weights, matrix in zip(found, expected, strict=True):
        np.testing.assert_allclose(weights.ravel(), matrix[3 * 13 + 5], rtol=1e-3)
        assert weights.sum() == pytest.approx(1, abs=1e-5)
        assert weights.max() > 2 / weights.size
    # Half of the way from the first to the second row, it is the second's; as the page rounds.
    between = weights_over_window(seen, (4, 0))[2]
    np.testing.assert_allclose(between.ravel(), expected[2][13], rtol=1e-3)
    corner = weights_over_window(seen, (64, 96))[2]
    np.testing.assert_allclose(corner.ravel(), expected[2][-1], rtol=1e-3)


def test_with_eq_2_a_pixel_attends_to_every_frame_itself(tiny_sta, frames):
    seen = look(tiny_sta, frames, 3)
    found = weights_over_window(seen, (24, 40))
    for weights, stored in zip(found, seen.window, strict=True):
        expected = affinity(seen.query, stored.key)[3 * 13 + 5]
        np.testing.assert_allclose(weights.ravel(), expected, rtol=1e-3)


def test_what_survives_is_shown(tiny4, frames):
    tiny4.surviving_paths = 3
    try:
        seen = look(tiny4, frames, 0)
        tiny4.surviving_paths = 1
        with pytest.raises(ValueError, match="model: expected 2 surviving paths or more, got 1"):
            look(tiny4, frames, 0)
    finally:
        tiny4.surviving_paths = 4
    assert (len(seen.frames), len(weights_over_window(seen, (0, 0)))) == (3, 2)


def test_a_picture_has_all_frames(tiny4, frames, tmp_path):
    pytest.importorskip("matplotlib")
    write_picture(tmp_path / "look.png", look(tiny4, frames, 0, (33, 49)), (10, 20))
    with Image.open(tmp_path / "look.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] > 4 * pixels.shape[0] / 2
    green = (pixels == (0, 255, 0)).all(-1)
    assert green[:, -pixels.shape[1] // 4 :].any()
    assert not green[:, : pixels.shape[1] // 2].any()


def test_one_row_of_features_is_drawn_over_the_whole_frame(tiny4, frames, tmp_path):
    pytest.importorskip("matplotlib")
    seen = look(tiny4, frames, 0, (8, 97))
    assert seen.query.shape[2] == 1
    write_picture(tmp_path / "look.png", seen, (10, 20))
    with Image.open(tmp_path / "look.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # The heat of the first frame is strong enough to colour its top and its bottom alike.
    left = pixels[:, : pixels.shape[1] // 4]
    drawn = np.flatnonzero((left != 255).any(-1).mean(1) > 0.9)
    edges = left[[drawn[2], drawn[-3]]].mean(1)
    np.testing.assert_allclose(edges[0], edges[1], atol=25)


# Reads a page from argv and prints the weights of the feature in argv, as its script finds them.
RUN_PAGE = """
const page = require("fs").readFileSync(process.argv[2], "utf8");
const part = (name) => page.match(new RegExp(`<script id="${name}"[^>]*>([^]*?)</script>`))[1];
const look = new Function(part("weights") + "; return looker;")()(JSON.parse(part("data")));
console.log(JSON.stringify(look(Number(process.argv[3])).map((map) => Array.from(map))));
"""


def test_a_page_needs_nothing_else(tiny4, frames, tmp_path):
    seen = look(tiny4, frames, 3)
    name = "<!--<script></script>"
    write_page(tmp_path / "look.html", seen, (24, 40), name)
    text = (tmp_path / "look.html").read_text()
    assert "@DATA@" not in text
    assert not re.findall(r"https?:|<link|@import|fetch\(", text)
    assert text.count("</script>") == 3
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S)[1])
    assert data["name"] == name
    assert "<!--" not in text
    assert (data["size"], data["features"], data["stored"]) == ([65, 97], [9, 13], [3, 4])
    with Image.open(io.BytesIO(base64.b64decode(data["frames"][0].partition(",")[2]))) as image:
        assert image.size == (97, 65)
    with pytest.raises(ValueError, match="pixel: expected a row below 65"):
        write_page(tmp_path / "look.html", seen, (65, 0))


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node to run the page")
@pytest.mark.parametrize("model", ["tiny4", "tiny_sta"])
def test_a_page_finds_the_same_weights(model, frames, tmp_path, request):
    seen = look(request.getfixturevalue(model), frames, 3)
    write_page(tmp_path / "look.html", seen, (24, 40))
    (tmp_path / "run.js").write_text(RUN_PAGE)
    command = ["node", tmp_path / "run.js", tmp_path / "look.html", str(3 * 13 + 5)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for found, expected in zip(
        json.loads(result.stdout), weights_over_window(seen, (24, 40)), strict=True
    ):
        np.testing.assert_allclose(found, expected.ravel(), rtol=1e-3)


def test_what_cannot_be_looked_at(tiny4, frames):
    adding = build(dataclasses.replace(tiny4.config, aggregation="add")).eval()
    with pytest.raises(ValueError, match="model: expected aggregation apm or sta, got add"):
        look(adding, frames, 0)
    with pytest.raises(ValueError, match="frames: expected 4 as paths, got 3"):
        look(tiny4, frames[:3], 0)
    with pytest.raises(ValueError, match="path: expected 0 to 3, got 4"):
        look(tiny4, frames, 4)
    seen = look(tiny4, frames, 0)
    for pixel in ((65, 0), (0, 97), (-1, 0)):
        with pytest.raises(ValueError, match=r"pixel: expected a row below 65 and .* 97"):
            weights_over_window(seen, pixel)


@pytest.fixture
def video(frames, tmp_path):
    (tmp_path / "in").mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "in" / f"{index}.png")
    return tmp_path / "in"


def invoke(*arguments):
    return CliRunner().invoke(app, ["attention", *map(str, arguments)])


def test_the_command_writes_a_picture(tiny, video, tmp_path):
    pytest.importorskip("matplotlib")
    save_checkpoint(tiny, tmp_path / "tiny.safetensors")
    options = ["--weights", tmp_path / "tiny.safetensors", "-o", tmp_path / "look.png"]
    result = invoke(video, *options, "--frame", 3, "--pixel", 10, 20)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
    page = [*options[:-1], tmp_path / "look.html"]
    assert invoke(video, *page, "--frame", 3, "--pixel", 10, 20).exit_code == 0
    assert '"frame 3"' in (tmp_path / "look.html").read_text()
    for frame, pixel, message in (
        (0, (0, 0), "--frame: expected 1 or more, so that frames are before it, got 0"),
        (4, (0, 0), "--frame: expected one of the 4 frames of"),
        (3, (65, 0), "pixel: expected a row below 65"),
    ):
        result = invoke(video, *options, "--frame", frame, "--pixel", *pixel)
        assert result.exit_code == 1
        assert message in result.stderr


def test_single_frame_models_remember_nothing(video, tmp_path):
    save_checkpoint(build_model("bisenet-18", 3), tmp_path / "single.safetensors")
    options = ["--weights", tmp_path / "single.safetensors", "-o", tmp_path / "look.png"]
    result = invoke(video, *options, "--frame", 3, "--pixel", 0, 0)
    assert result.exit_code == 1
    assert "--weights: expected a TDNet, got bisenet-18" in result.stderr
