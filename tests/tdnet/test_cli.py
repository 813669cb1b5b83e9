import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av", reason="PyAV is not installed")
from typer.testing import CliRunner  # noqa: E402

from tdnet.cli import segment  # noqa: E402
from tdnet.cli.app import app  # noqa: E402
from tdnet.cli.segment import latency_report, parse_size  # noqa: E402
from tdnet.data.synthetic import street_clip  # noqa: E402
from tdnet.video import InterruptFlag  # noqa: E402

RATE = Fraction(30000, 1001)
SMALL = ["--model", "td4-psp18", "--size", "65x129", "--device", "cpu"]

# Reads argv: input, output, frames to finish before it waits for a signal. It says "waiting" once
# they are written, then goes on slowly.
SLOW_RUN = textwrap.dedent(
    """
    import sys, time
    from fractions import Fraction
    import numpy as np
    from tdnet.cli.segment import segment_source
    from tdnet.video import open_source, open_writer

    class Slow:
        frames = 0
        def step(self, frame):
            if self.frames == int(sys.argv[3]):
                print("waiting", flush=True)
            if self.frames >= int(sys.argv[3]):
                time.sleep(0.2)
            self.frames += 1
            return np.zeros(frame.shape[:2], np.uint8)

        def prepare(self):
            pass

    source = open_source(sys.argv[1], Fraction(10))
    sys.exit(segment_source(source, open_writer(sys.argv[2], source, 0.5), Slow, "cpu"))
    """
)


def make_video(path, frames, size=(64, 128)):
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            image = np.full((*size, 3), 3 * index % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def count_frames(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def invoke(*arguments):
    return CliRunner().invoke(app, ["segment", *map(str, arguments)])


def error_lines(result):
    return [line for line in result.stderr.splitlines() if line.startswith("tdnet: error:")]


def test_a_video_is_segmented(tmp_path):
    source = make_video(tmp_path / "in.mp4", 6)
    result = invoke(source, "-o", tmp_path / "out.mp4", *SMALL)
    assert result.exit_code == 0, result.output
    assert count_frames(tmp_path / "out.mp4") == 6
    assert "6 frames in" in result.stdout
    assert "mean" in result.stdout
    assert "p95" in result.stdout
    assert "max" in result.stdout
    assert "backend: " in result.stdout
    assert "weights are random" in result.stderr


def test_an_image_folder_gives_pngs_named_like_its_images(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(street_clip(3, (64, 128))):
        Image.fromarray(frame.image).save(folder / f"street{index + 8}.png")
    result = invoke(folder, "-o", f"{tmp_path}/out/", *SMALL, "--num-classes", 7)
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"street{i}_{kind}.png" for i in (8, 9, 10) for kind in ("color", "label")}
    with Image.open(tmp_path / "out" / "street9_label.png") as labels:
        assert labels.size == (128, 64)
        assert np.asarray(labels).max() < 7


def test_the_demonstration_needs_no_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(segment, "DEMO_FRAMES", 3)
    monkeypatch.setattr(segment, "DEMO_SIZE", (64, 128))
    result = invoke("--demo", "--model", "pspnet-18", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "weights are random" in result.stderr
    assert count_frames(tmp_path / "tdnet_demo.mp4") == 3


def test_a_checkpoint_is_used_and_not_called_random(tmp_path):
    from tdnet import build_model, save_checkpoint

    save_checkpoint(build_model("pspnet-18", num_classes=3), tmp_path / "weights.safetensors")
    source = make_video(tmp_path / "in.mp4", 2)
    weights = ["--checkpoint", tmp_path / "weights.safetensors", "--size", "65x129"]
    result = invoke(source, "-o", f"{tmp_path}/out/", *weights, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "random" not in result.output
    wrong = invoke(source, "-o", f"{tmp_path}/out/", *weights, "--model", "td4-psp18")
    assert wrong.exit_code == 1
    assert len(error_lines(wrong)) == 1


def test_failures_are_one_line_and_exit_code_1(tmp_path):
    source = make_video(tmp_path / "in.mp4", 2)
    (tmp_path / "empty.mp4").touch()
    output = ["-o", tmp_path / "out.mp4", *SMALL]
    for message, arguments in {
        "no such file": [tmp_path / "missing.mp4", *output],
        "the file is empty": [tmp_path / "empty.mp4", *output],
        "camera 987": ["987", *output],
        "cannot be written": [source, "-o", tmp_path / "missing" / "out.mp4"],
        "expected a name ending in": [source, "-o", tmp_path / "out.txt"],
        "expected HEIGHTxWIDTH": [source, "-o", tmp_path / "out.mp4", "--size", "65"],
        "there is no checkpoint file": [source, "-o", tmp_path / "o.mp4", "--checkpoint", "no.pkl"],
        "would replace the input": [source, "-o", source],
    }.items():
        result = invoke(*arguments)
        assert result.exit_code == 1, message
        assert len(error_lines(result)) == 1
        assert message in error_lines(result)[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.mp4", "in.mp4"]


def test_the_folder_of_the_input_is_refused(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    result = invoke(tmp_path, "-o", f"{tmp_path}/")
    assert result.exit_code == 1
    assert "would replace the input" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["in.mp4"],
        ["in.mp4", "--demo"],
        ["in.mp4", "-o", "o.mp4", "--alpha", "1.5"],
        ["in.mp4", "-o", "o.mp4", "--alpha", "nan"],
        ["in.mp4", "-o", "o.mp4", "--model", "td9"],
        ["in.mp4", "-o", "o.mp4", "--num-classes", "0"],
        ["in.mp4", "-o", "o.mp4", "--checkpoint", "w.pkl", "--num-classes", "5"],
        ["in.mp4", "-o", "o.mp4", "--unknown"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    assert invoke(*arguments).exit_code == 2


def test_a_truncated_video_keeps_its_frames(tmp_path):
    source = make_video(tmp_path / "in.mp4", 20)
    data = source.read_bytes()
    source.write_bytes(data[: int(0.9 * len(data))])
    result = invoke(source, "-o", tmp_path / "out.mp4", *SMALL)
    assert result.exit_code == 1
    (line,) = error_lines(result)
    assert "truncated" in line
    kept = count_frames(tmp_path / "out.mp4")
    assert f"the {kept} finished frames are in" in line


@pytest.mark.parametrize("text", ["", "65", "65x", "0x65", "-1x5", "65x129x3", "1.5x2", "٣x٣"])
def test_bad_sizes(text):
    with pytest.raises(ValueError, match="--size"):
        parse_size(text)


def test_sizes_are_height_first():
    assert parse_size("360x480") == (360, 480)


def test_latency_report():
    report = latency_report([0.001 * milliseconds for milliseconds in range(1, 101)])
    assert report == "latency per frame: mean 50.5 ms, p95 95.0 ms, max 100.0 ms"


@pytest.fixture
def slow_run(tmp_path):
    """Starts a slow run on a long video in another process; it waits after 5 frames."""
    source = make_video(tmp_path / "in.mp4", 200)
    processes = []

    def start(output):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_RUN, str(source), output, "5"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,  # not where the sources of the package are
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        processes.append(process)
        assert process.stdout.readline() == "waiting\n", process.stderr.read()
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_ends_the_video_cleanly(tmp_path, slow_run, number):
    process = slow_run(str(tmp_path / "out.mp4"))
    process.send_signal(number)
    stdout, stderr = process.communicate()
    assert process.returncode == 128 + number, stderr
    kept = count_frames(tmp_path / "out.mp4")
    assert 5 <= kept < 200
    assert f"{kept} frames in" in stdout
    assert f"interrupted ({number.name})" in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_a_signal_that_was_ignored_stays_ignored():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with InterruptFlag() as flag:
            signal.raise_signal(signal.SIGHUP)
            assert flag.signal is None
            signal.raise_signal(signal.SIGTERM)
            assert flag.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_closed_terminal_keeps_the_frames(tmp_path):
    """The kernel sends SIGHUP, and writing to the terminal fails from then on."""
    source = make_video(tmp_path / "in.mp4", 200)
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
        os.chdir(tmp_path)
        arguments = ["-c", SLOW_RUN, str(source), "out.mp4", "5"]
        os.execv(sys.executable, [sys.executable, *arguments])
    shown = b""
    while b"waiting" not in shown:
        shown += os.read(terminal, 1000)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert count_frames(tmp_path / "out.mp4") >= 5


def test_impatient_ctrl_c_also_keeps_the_frames(tmp_path, slow_run):
    process = slow_run(str(tmp_path / "out.mp4"))
    while process.poll() is None and not (tmp_path / "out.mp4").exists():
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    process.communicate()
    assert count_frames(tmp_path / "out.mp4") >= 5


def test_a_kill_leaves_only_the_temporary_file(tmp_path, slow_run):
    process = slow_run(str(tmp_path / "out.mp4"))
    process.kill()
    process.communicate()
    left = [path.name for path in tmp_path.iterdir() if path.name != "in.mp4"]
    assert len(left) == 1
    assert left[0].startswith(".out.mp4.")
    assert left[0].endswith(".part")


def test_a_kill_leaves_only_whole_pngs(tmp_path, slow_run):
    process = slow_run(f"{tmp_path}/out/")
    process.kill()
    process.communicate()
    pngs = list((tmp_path / "out").glob("*.png"))
    assert len(pngs) >= 10
    for path in pngs:
        with Image.open(path) as image:
            image.load()


def test_the_module_is_the_command(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "tdnet.cli", "segment", "nothing.mp4", "-o", "out.mp4"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert result.stderr == "tdnet: error: nothing.mp4: no such file, folder or camera\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_cannot_be_printed_are_escaped(tmp_path, encoding):
    source = make_video(tmp_path / "in.mp4", 2)
    name = os.fsdecode(b"\xffa\n\x1b[31m\xe5\xad\x97.mp4")
    result = subprocess.run(
        [sys.executable, "-m", "tdnet.cli", "segment", source, "-o", name, *SMALL],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert result.returncode == 0, result.stderr
    shown = rb"\xffa\n\x1b[31m" + ("字".encode() if encoding == "utf-8" else rb"\u5b57")
    assert b"2 frames in " + shown + b".mp4\n" in result.stdout
    assert count_frames(tmp_path / name) == 2


def test_an_error_names_a_file_of_any_name(tmp_path):
    name = os.fsdecode(b"\xff\n.mp4")
    result = invoke(tmp_path / name, "-o", tmp_path / "out.mp4")
    assert result.exit_code == 1
    (line,) = error_lines(result)
    assert r"\xff\n.mp4: no such file" in line


def test_standard_input_is_read(tmp_path):
    source = make_video(tmp_path / "in.mkv", 3)
    result = subprocess.run(
        [sys.executable, "-m", "tdnet.cli", "segment", "-", "-o", "out.mp4", *SMALL],
        input=source.read_bytes(),
        capture_output=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert count_frames(tmp_path / "out.mp4") == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "--device: expected cpu, cuda, cuda:1 or alike, got 'nonsense'"),
        ("meta", "--device: expected cpu, cuda, cuda:1 or alike, got 'meta'"),
        ("cuda:99", r"--device cuda:99: this torch \(.*\) finds [0-9]+ GPUs"),
    ],
)
def test_a_device_that_is_not_there_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        segment.parse_device(name)


def test_the_help_names_what_is_read():
    told = " ".join(
        CliRunner().invoke(app, ["segment", "--help"], terminal_width=500).output.split()
    )
    for kind in ("PNG", "JPEG", "WebP", "BMP", "TIFF", ".safetensors", ".pkl", ".pth", ".pt"):
        assert kind in told
