"""The page of `tdnet attention` in a browser: what it shows where it is clicked."""

import base64
import colorsys
import contextlib
import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tdnet import load_checkpoint, save_checkpoint
from tdnet.architectures import ModelConfig
from tdnet.cli.app import app
from tdnet.evaluation.attention import look, weights_over_window
from tdnet.models import build

SIZE = (65, 97)
STRIDE = 4  # of pooling
SCALE = 8  # pixels a feature
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to open the page"),
]


def pipe():
    """The ends of a pipe, reading and writing, as descriptors from 10 on."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved


class Browser:
    """A headless Chromium, spoken to by its DevTools protocol over two pipes."""

    def __init__(self, profile):
        # Chromium reads commands from descriptor 3 and answers on 4.
        commands, self.write = pipe()
        read, answers = pipe()
        options = [
            "--headless=new",
            "--window-size=1500,900",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        launch = ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash"]
        self.process = subprocess.Popen(
            [*launch, BROWSER, *options, "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # One that hangs would be waited for without end.
        self.watch = threading.Timer(120, self.process.kill)
        self.watch.start()
        os.close(commands)
        os.close(answers)
        self.messages = os.fdopen(read, "rb")
        self.count = 0
        self.requested = []  # addresses
        self.session = None

    def call(self, method, **parameters):
        """The result of a command; what is requested meanwhile is noted."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])

    def _next(self):
        text = bytearray()
        while (letter := self.messages.read(1)) != b"\0":
            assert letter, "the browser has ended"
            text += letter
        return json.loads(text)

    def open(self, path):
        target = self.call("Target.createTarget", url="about:blank")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        self.call("Network.enable")
        self.call("Page.enable")
        self.call("Page.navigate", url=path.as_uri())
        self.run("""new Promise((done) => {
          if (document.readyState === "complete") done(); else window.onload = () => done();
        })""")
        self.run("Promise.all(panels.map(({ image }) => image.decode()))")

    def run(self, script):
        """The value of an expression in the page, waited for if it is a promise."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def click(self, row, column):
        """Click on a pixel of the last frame as a person does."""
        left, top, width, height = self.run("""(() => {
          const box = panels[panels.length - 1].canvas.getBoundingClientRect();
          return [box.left, box.top, box.width, box.height];
        })()""")
        x = left + (column + 0.5) * width / SIZE[1]
        y = top + (row + 0.5) * height / SIZE[0]
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def canvases(self):
        """What is shown: uint8 [H, W, 3] of each frame, oldest first."""
        shown = self.run("panels.map(({ canvas }) => canvas.toDataURL('image/png'))")
        return [pixels_of(address) for address in shown]

    def close(self):
        self.watch.cancel()
        with contextlib.suppress(OSError, AssertionError):
            self.session = None
            self.call("Browser.close")
        os.close(self.write)
        self.messages.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def pixels_of(address):
    """A picture as uint8 [H, W, 3] from a data URL."""
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def heat(frame, weights):
    """A frame under the heat map of weights, and where no two cells share a pixel."""
    expected, inside = np.zeros(frame.shape), np.zeros(SIZE, dtype=bool)
    window = STRIDE * SCALE
    for (row, column), strength in np.ndenumerate(weights / weights.max()):
        # A feature is the middle of its cell; the first pixel is the middle of the first feature.
        top, left = (int(cell * window - SCALE / 2 + 1) for cell in (row, column))
        area = (
            slice(max(top, 0), top + window - 1),
            slice(max(left, 0), left + window - 1),
        )
        colour = np.array(colorsys.hls_to_rgb((1 - strength) * 240 / 360, 0.5, 1)) * 255
        opacity = 0.25 + 0.5 * strength
        expected[area] = opacity * colour + (1 - opacity) * frame[area]
        inside[area] = True
    return expected, inside


@pytest.fixture
def model(tmp_path):
    """Of three frames that it remembers, with pixels that look at different places."""
    torch.manual_seed(0)
    config = ModelConfig("td4-bise18", "resnet-18", "bilateral", 4, 8, 3, 8, norm_size=(5, 7))
    model = build(config).eval()
    with torch.no_grad():
        for path in model.paths:
            for projection in (path.encoding.query, path.encoding.key):
                projection.norm.running_var.fill_(0.01)
                projection.project.weight.mul_(4)
    save_checkpoint(model, tmp_path / "model.safetensors")
    return load_checkpoint(tmp_path / "model.safetensors").eval()


def test_a_click_shows_where_that_pixel_looked(model, browser, tmp_path):
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(4)]
    (tmp_path / "video").mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "video" / f"{index}.png")
    page = tmp_path / "look.html"
    command = ["attention", tmp_path / "video", "--weights", tmp_path / "model.safetensors"]
    options = ["--frame", 3, "--pixel", 0, 0, "-o", page]
    result = CliRunner().invoke(app, [str(argument) for argument in (*command, *options)])
    assert result.exit_code == 0, result.output
    data = json.loads(
        re.search(r'<script id="data"[^>]*>(.*?)</script>', page.read_text(), re.S)[1]
    )
    drawn = [pixels_of(address) for address in data["frames"]]
    seen = look(model, frames, 0)
    first = (24, 40)
    centres = [(row, column) for row in range(4, SIZE[0], 8) for column in range(4, SIZE[1], 8)]
    newest = {pixel: weights_over_window(seen, pixel)[2] for pixel in (first, *centres)}
    elsewhere = max(centres, key=lambda pixel: np.abs(newest[pixel] - newest[first]).max())

    browser.open(page)
    shown = {}
    for pixel in ((0, 0), first, elsewhere):
        if pixel != (0, 0):  # which is shown first
            browser.click(*pixel)
        *maps, last = shown[pixel] = browser.canvases()
        assert browser.run("document.getElementById('place').textContent") == (
            f"row {pixel[0]}, column {pixel[1]}"
        )
        weights = weights_over_window(seen, pixel)
        assert len(maps) == len(weights) == 3
        for found, frame, expected_weights in zip(maps, drawn, weights, strict=False):
            expected, inside = heat(frame, expected_weights)
            assert inside.mean() > 0.8
            np.testing.assert_allclose(found[inside], expected[inside], atol=6)
        assert (last[pixel] == (0, 255, 0)).all()  # the cross
    # In the frame before; the longer the chain, the more alike are all pixels.
    changed = np.abs(shown[first][2].astype(int) - shown[elsewhere][2])
    assert changed.max() > 30
    assert browser.requested
    assert all(address.startswith(("file:", "data:")) for address in browser.requested)
