import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av", reason="PyAV is not installed")

from av.stream import Disposition  # noqa: E402

from tdnet.video import (  # noqa: E402
    Camera,
    Frame,
    ImageFolder,
    OverlayVideoWriter,
    PngFolderWriter,
    VideoError,
    VideoFile,
    open_source,
    open_writer,
    overlay_writer,
    segment_frames,
)
from tdnet.video.images import natural_key  # noqa: E402
from tdnet.video.reader import upright  # noqa: E402

NTSC = Fraction(30000, 1001)
HEIGHT, WIDTH = 32, 48


def picture(index, height=HEIGHT, width=WIDTH):
    """A red upper half over a blue lower one, with a white bar at the left that grows."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2] = (200, 30, 40)
    image[height // 2 :] = (20, 60, 180)
    image[:, : 4 + index] = 255
    return image


def make_video(
    path,
    frames=8,
    size=(HEIGHT, WIDTH),
    rate=NTSC,
    stamps=None,
    tick=None,
    rotation=None,
    aspect=None,
    options=None,
):
    codec = "mpeg4" if path.suffix == ".avi" else "libx264"
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        if tick is not None:
            stream.time_base = stream.codec_context.time_base = tick
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.pts = index if stamps is None else stamps[index]
            frame.time_base = tick or 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def truncate(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def read_video(path):
    """Images, times and durations in seconds, and the stream of a finished video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        images = [frame.to_ndarray(format="rgb24") for frame in frames]
        return images, [frame.pts * frame.time_base for frame in frames], stream


class Segmenter:
    """Labels everything 0 and can fail at a given frame."""

    def __init__(self, fail_at=None):
        self.frames = 0
        self.fail_at = fail_at

    def step(self, frame):
        if self.frames == self.fail_at:
            raise RuntimeError("the segmenter broke")
        self.frames += 1
        return np.zeros(frame.shape[:2], np.uint8)

    def prepare(self):
        pass


def convert(source, output, segmenter=None, alpha=0.0, stop=lambda: False):
    source = open_source(str(source), Fraction(10))
    result = open_writer(str(output), source, alpha)
    with result:
        segment_frames(source, segmenter or Segmenter(), result, [], stop, lambda: None)
    return result


def assert_close(one, other):
    """Equal up to what lossy coding of small pictures with sharp edges does."""
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other).mean() < 8


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".mov"])
def test_pictures_and_the_rate_30000_over_1001_survive(tmp_path, suffix):
    source = make_video(tmp_path / f"in{suffix}")
    assert VideoFile(source).frame_rate == NTSC
    convert(source, tmp_path / "out.mp4")
    images, times, stream = read_video(tmp_path / "out.mp4")
    assert times == [index / NTSC for index in range(8)]
    assert stream.average_rate == NTSC
    assert stream.duration * stream.time_base == 8 / NTSC
    for index, image in enumerate(images):
        assert_close(image, picture(index))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, "out.mp4"])


def test_variable_timestamps_survive(tmp_path):
    stamps = [0, 3000, 6100, 15000, 15001, 40000, 90000]
    tick = Fraction(1, 90000)
    source = make_video(tmp_path / "in.mp4", len(stamps), stamps=stamps, tick=tick)
    convert(source, tmp_path / "out.mp4")
    _, times, stream = read_video(tmp_path / "out.mp4")
    assert times == [stamp * tick for stamp in stamps]
    assert stream.duration * stream.time_base > 1


def test_a_late_start_of_the_container_is_not_kept(tmp_path):
    tick = Fraction(1, 90000)
    source = make_video(tmp_path / "in.ts", 4, stamps=[900000, 903000, 906000, 915000], tick=tick)
    times = [frame.time for frame in VideoFile(source)]
    assert times == [0, 3000 * tick, 6000 * tick, 15000 * tick]


@pytest.mark.parametrize("size", [(33, 48), (32, 49), (35, 51)])
def test_odd_sizes_survive(tmp_path, size):
    source = make_video(tmp_path / "in.mp4", 3, size=size)
    convert(source, tmp_path / "out.mp4")
    images, _, stream = read_video(tmp_path / "out.mp4")
    assert (stream.height, stream.width) == size
    assert_close(images[2], picture(2, *size))


@pytest.mark.parametrize(("rotation", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3)])
def test_rotated_videos_are_written_upright(tmp_path, rotation, turns):
    source = make_video(tmp_path / "in.mp4", 3, rotation=rotation)
    convert(source, tmp_path / "out.mp4")
    images, _, _ = read_video(tmp_path / "out.mp4")
    assert_close(images[0], np.rot90(picture(0), turns))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == 1
        assert next(container.decode(video=0)).rotation == 0


def test_mirroring_in_the_display_matrix():
    image = picture(0)
    unit = 1 << 16
    matrix = np.array([[-unit, 0, 0], [0, unit, 0], [0, 0, 1 << 30]], np.int32)
    mirrored, transposed = upright(image, matrix)
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    assert not transposed
    matrix = np.array([[0, unit, 0], [unit, 0, 0], [0, 0, 1 << 30]], np.int32)
    mirrored, transposed = upright(image, matrix)
    np.testing.assert_array_equal(mirrored, image.transpose(1, 0, 2))
    assert transposed


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_pixel_aspect_survives_and_turns_with_the_picture(tmp_path, suffix):
    source = make_video(tmp_path / "in.mp4", 2, aspect=Fraction(4, 3), rotation=90)
    assert next(iter(VideoFile(source))).pixel_aspect == Fraction(3, 4)
    convert(source, tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(3, 4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("in.mp4", {"movflags": "faststart"}),
        ("in.mov", {"movflags": "faststart"}),
        ("in.mkv", None),
        ("in.avi", None),
        ("in.ts", None),
    ],
)
def test_a_truncated_video_is_an_error_and_keeps_its_frames(tmp_path, name, options):
    source = truncate(make_video(tmp_path / name, 60, options=options), 0.85)
    with pytest.raises(VideoError, match="truncated"):
        convert(source, tmp_path / "out.mp4")
    images, times, _ = read_video(tmp_path / "out.mp4")
    assert 0 < len(images) < 60
    # The file holds frames out of order, so that one before the last good one may be lost.
    assert set(times) <= {index / NTSC for index in range(60)}


def test_a_video_without_its_index_is_an_error(tmp_path):
    source = truncate(make_video(tmp_path / "in.mp4", 20), 0.5)
    with pytest.raises(VideoError, match="truncated"):
        VideoFile(source)


def test_a_damaged_middle_is_an_error_and_keeps_the_other_frames(tmp_path):
    source = make_video(tmp_path / "in.avi", 60)
    with av.open(str(source)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        hurt = packets[30]
        position, size = hurt.pos, hurt.size
    data = bytearray(source.read_bytes())
    data[position + 8 : position + 8 + size] = bytes(size)
    source.write_bytes(data)
    with pytest.raises(VideoError, match="damaged"):
        convert(source, tmp_path / "out.mp4")
    assert len(read_video(tmp_path / "out.mp4")[0]) >= 30


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"no video at all " * 99, "cannot be read as a video")],
)
def test_files_that_are_no_video(tmp_path, content, message):
    path = tmp_path / "in.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=message):
        open_source(str(path), NTSC)


def test_a_sound_file_holds_no_video(tmp_path):
    path = tmp_path / "in.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        open_source(str(path), NTSC)


def test_missing_sources(tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        open_source(str(tmp_path / "nothing.mp4"), NTSC)
    with pytest.raises(VideoError, match="camera 987 cannot be opened"):
        open_source("987", NTSC)
    with pytest.raises(VideoError, match="camera 987"):
        Camera(987)
    with pytest.raises(VideoError, match="no PNG or JPEG"):
        open_source(str(tmp_path), NTSC)


def test_names_sort_naturally():
    names = ["b1.png", "a10.png", "a9.png", "a009.png", "10.png", "9.png", "a.png"]
    assert sorted(names, key=natural_key)[:2] == ["9.png", "10.png"]
    assert sorted(names, key=natural_key)[-1] == "b1.png"
    assert natural_key("a9.png") < natural_key("a10.png")


def test_an_image_folder_is_read_in_natural_order(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(12):
        suffix = ".jpg" if index == 10 else ".png"
        Image.fromarray(picture(index)).save(folder / f"f{index}{suffix}")
    (folder / "notes.txt").write_text("no image")
    (folder / "._f1.png").write_bytes(b"no image either")
    frames = list(ImageFolder(folder, NTSC))
    assert [frame.name for frame in frames] == [f"f{index}" for index in range(12)]
    assert [frame.time for frame in frames] == [index / NTSC for index in range(12)]
    for index, frame in enumerate(frames):
        assert_close(frame.image, picture(index))


def test_images_that_share_a_stem_keep_their_suffix(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(picture(0)).save(tmp_path / name)
    assert [frame.name for frame in ImageFolder(tmp_path, NTSC)] == ["a.jpg", "a.png"]


def test_image_orientation_and_gray_and_transparency(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    Image.fromarray(picture(0)).save(tmp_path / "1.png", exif=exif)
    Image.fromarray(picture(0)).convert("L").save(tmp_path / "2.png")
    Image.fromarray(picture(0)).convert("RGBA").save(tmp_path / "3.png")
    turned, gray, transparent = (frame.image for frame in ImageFolder(tmp_path, NTSC))
    np.testing.assert_array_equal(turned, np.rot90(picture(0), -1))
    assert gray.shape == picture(0).shape
    np.testing.assert_array_equal(transparent, picture(0))


def test_a_broken_image_is_named_and_the_frames_before_it_are_kept(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(picture(index)).save(folder / f"{index}.png")
    truncate(folder / "2.png", 0.6)
    with pytest.raises(VideoError, match=r"2\.png"):
        convert(folder, tmp_path / "out.mp4")
    assert len(read_video(tmp_path / "out.mp4")[0]) == 2


def test_a_change_of_size_is_an_error_and_keeps_the_frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.fromarray(picture(0)).save(folder / "0.png")
    Image.fromarray(picture(1, 40, 40)).save(folder / "1.png")
    with pytest.raises(VideoError, match=r"1: the size changed from 32x48 to 40x40"):
        convert(folder, tmp_path / "out.mp4")
    assert len(read_video(tmp_path / "out.mp4")[0]) == 1


def test_png_folder_output(tmp_path):
    source = make_video(tmp_path / "in.mp4", 3)
    result = convert(source, f"{tmp_path}/out/")
    assert isinstance(result, PngFolderWriter)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{i:06d}_{kind}.png" for i in range(3) for kind in ("color", "label")]
    with Image.open(tmp_path / "out" / "000002_label.png") as labels:
        assert labels.mode == "L"
        assert np.asarray(labels).tolist() == np.zeros((HEIGHT, WIDTH)).tolist()
    with Image.open(tmp_path / "out" / "000002_color.png") as colors:
        assert colors.getpixel((0, 0)) == (128, 64, 128)


def test_an_existing_folder_is_a_folder_without_the_slash(tmp_path):
    (tmp_path / "out").mkdir()
    convert(make_video(tmp_path / "in.mp4", 2), tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_an_exception_keeps_the_finished_frames(tmp_path):
    source = make_video(tmp_path / "in.mp4")
    with pytest.raises(RuntimeError, match="the segmenter broke"):
        convert(source, tmp_path / "out.mp4", Segmenter(fail_at=3))
    assert len(read_video(tmp_path / "out.mp4")[0]) == 3


def test_no_frame_leaves_no_file_and_an_old_result_alone(tmp_path):
    source = make_video(tmp_path / "in.mp4")
    output = tmp_path / "out.mp4"
    output.write_text("an older result")
    with pytest.raises(RuntimeError, match="the segmenter broke"):
        convert(source, output, Segmenter(fail_at=0))
    assert output.read_text() == "an older result"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_a_stop_request_keeps_the_finished_frames(tmp_path):
    source = make_video(tmp_path / "in.mp4")
    segmenter = Segmenter()
    convert(source, tmp_path / "out.mp4", segmenter, stop=lambda: segmenter.frames == 5)
    assert len(read_video(tmp_path / "out.mp4")[0]) == 5


def test_nothing_stands_under_the_final_name_before_the_end(tmp_path):
    output = tmp_path / "out.mp4"
    frame = Frame(picture(0), Fraction(0), 1 / NTSC, "0")
    with OverlayVideoWriter(output, NTSC, 1 / NTSC, 0.5) as result:
        result.write(frame, np.zeros((HEIGHT, WIDTH), np.uint8))
        assert not output.exists()
        assert len(list(tmp_path.glob(".out.mp4.*.part"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("name", ["out.mp4", "out/"])
def test_unwritable_places_are_refused_before_any_frame(tmp_path, name):
    source = make_video(tmp_path / "in.mp4", 2)
    (tmp_path / "file").write_text("a file, not a folder")
    for parent in ("file", "missing"):
        segmenter = Segmenter()
        with pytest.raises(VideoError, match="cannot be written"):
            convert(source, f"{tmp_path}/{parent}/{name}", segmenter)
        assert segmenter.frames == 0


def test_an_unknown_suffix_is_refused(tmp_path):
    source = make_video(tmp_path / "in.mp4", 2)
    with pytest.raises(VideoError, match=r"expected a name ending in \.mp4.*got"):
        convert(source, tmp_path / "out.gif")


def test_an_encoder_without_444_leaves_odd_sizes_to_mpeg4(monkeypatch):
    monkeypatch.setattr(overlay_writer, "available_encoders", lambda: ["libopenh264", "mpeg4"])
    assert overlay_writer.choose_encoder(32, 48) == ("libopenh264", "yuv420p")
    assert overlay_writer.choose_encoder(33, 48) == ("mpeg4", "yuv420p")
    monkeypatch.setattr(overlay_writer, "available_encoders", lambda: ["libopenh264"])
    with pytest.raises(VideoError, match="no installed encoder stores frames of 32x49"):
        overlay_writer.choose_encoder(32, 49)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_full_disk_is_an_error_and_keeps_the_frames_on_it(tmp_path, suffix):
    """A limit on the size of files stops the writing in the middle, as a full disk does."""
    code = """
        import resource, sys
        import numpy as np
        from fractions import Fraction
        from tdnet.video import ImageSequence, VideoError, open_writer, segment_frames

        class Segmenter:
            def step(self, frame):
                return np.zeros(frame.shape[:2], np.uint8)

            def prepare(self):
                pass

        random = np.random.default_rng(0)
        images = (random.integers(0, 255, (64, 128, 3), dtype=np.uint8) for _ in range(80))
        source = ImageSequence(images, 80, Fraction(10), "noise")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        writer = open_writer(sys.argv[1], source, 0.0)
        try:
            with writer:
                segment_frames(source, Segmenter(), writer, [], lambda: False, lambda: None)
        except VideoError as error:
            print(writer.frames_written, error)
    """
    output = tmp_path / f"out{suffix}"
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(output)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,  # not where the sources of the package are
    )
    kept, message = result.stdout.split(" ", 1)
    assert "cannot be finished: File too large" in message
    images, times, _ = read_video(output)
    assert len(images) == int(kept) >= 10
    assert times == [Fraction(index, 10) for index in range(len(times))]
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_without_h264_the_result_is_mpeg4(tmp_path, monkeypatch):
    monkeypatch.setattr(overlay_writer, "ENCODERS", ("mpeg4",))
    source = make_video(tmp_path / "in.mp4", size=(33, 49))
    convert(source, tmp_path / "out.mp4")
    images, times, stream = read_video(tmp_path / "out.mp4")
    assert stream.codec_context.name == "mpeg4"
    assert times == [index / NTSC for index in range(8)]
    assert_close(images[7], picture(7, 33, 49))


def test_mpeg4_takes_ticks_too_fine_for_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(overlay_writer, "ENCODERS", ("mpeg4",))
    tick = Fraction(1, 90000)
    source = make_video(tmp_path / "in.mp4", 4, stamps=[0, 3003, 6006, 12012], tick=tick)
    convert(source, tmp_path / "out.mp4")
    assert read_video(tmp_path / "out.mp4")[1] == [0, 1 / NTSC, 2 / NTSC, 4 / NTSC]


def test_a_missing_codec_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(overlay_writer, "ENCODERS", ("no_such_encoder",))
    source = make_video(tmp_path / "in.mp4", 2)
    with pytest.raises(VideoError, match="none of the video encoders no_such_encoder"):
        convert(source, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    convert(source, f"{tmp_path}/out/")
    assert len(list((tmp_path / "out").iterdir())) == 4


def make_transport_stream(path, start=0, frames=10):
    tick = Fraction(1, 90000)
    stamps = [start + 9000 * index for index in range(frames)]
    return make_video(path, frames, rate=Fraction(10), stamps=stamps, tick=tick)


@pytest.mark.parametrize("start", [0, 90000 * 3600 * 5])
def test_appended_transport_streams_are_one_after_the_other(tmp_path, start):
    first = make_transport_stream(tmp_path / "1.ts", start)
    other = make_transport_stream(tmp_path / "2.ts")
    source = tmp_path / "in.ts"
    source.write_bytes(first.read_bytes() + other.read_bytes() + first.read_bytes())
    convert(source, tmp_path / "out.mp4")
    _, times, stream = read_video(tmp_path / "out.mp4")
    assert len(times) == 30
    # FFmpeg counts across the wrap of 33 bits, in ticks that are no tenths of a second.
    assert all(abs(time - Fraction(i, 10)) < 0.06 for i, time in enumerate(times))
    assert abs(stream.duration * stream.time_base - 3) < 0.06


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("source", ["in.mp4", "in.mov", "in.mkv"])
def test_a_late_start_is_kept(tmp_path, source, suffix):
    tick = Fraction(1, 90000)
    stamps = [135000 + 9000 * index for index in range(5)]
    options = {"movflags": "faststart", "use_editlist": "1"} if source != "in.mkv" else {}
    make_video(tmp_path / source, 5, rate=Fraction(10), stamps=stamps, tick=tick, options=options)
    convert(tmp_path / source, tmp_path / f"out{suffix}")
    _, times, _ = read_video(tmp_path / f"out{suffix}")
    assert times == [Fraction(15 + index, 10) for index in range(5)]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
def test_one_image_is_a_video_of_one_frame(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    path = tmp_path / f"in{suffix}"
    Image.fromarray(picture(0)).save(path, **({} if suffix == ".bmp" else {"exif": exif}))
    (frame,) = open_source(str(path), NTSC)
    assert_close(frame.image, picture(0) if suffix == ".bmp" else np.rot90(picture(0), -1))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_side_data_unknown_to_pyav_is_ignored(tmp_path, orientation, turns):
    """Motion JPEG with EXIF in its frames, as cameras write it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(0)).save(tmp_path / "in.jpg", exif=exif, quality=95)
    path = tmp_path / "in.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        for index in range(3):
            packet = av.Packet((tmp_path / "in.jpg").read_bytes())
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = index
            container.mux(packet)
    frames = list(VideoFile(path))
    assert len(frames) == 3
    assert_close(frames[0].image, np.rot90(picture(0), turns))


def test_an_animated_png_is_a_video(tmp_path):
    first, *others = [Image.fromarray(picture(index)) for index in range(4)]
    first.save(tmp_path / "in.png", save_all=True, append_images=others, duration=200)
    assert len(list(open_source(str(tmp_path / "in.png"), NTSC))) == 4


@pytest.mark.parametrize(
    ("mode", "white"),
    [("I;16", 65535), ("L", 255), ("1", 1), ("P", 255), ("LA", (255, 255)), ("RGBA", (255,) * 4)],
)
def test_white_black_and_gray_of_every_kind_of_image(tmp_path, mode, white):
    image = Image.new(mode, (4, 2), white)
    image.putpixel((0, 0), (0,) * (len(white) - 1) + (255,) if isinstance(white, tuple) else 0)
    image.save(tmp_path / "0.png")
    (frame,) = ImageFolder(tmp_path, NTSC)
    assert frame.image[0, 0].tolist() == [0, 0, 0]
    if mode != "P":  # whose colours stand in a table
        assert frame.image[1, 3].tolist() == [255, 255, 255]


def test_16_bit_gray_is_scaled(tmp_path):
    gray = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(gray).save(tmp_path / "0.png")
    Image.fromarray(gray).save(tmp_path / "1.tif")
    for frame in ImageFolder(tmp_path, NTSC):
        np.testing.assert_array_equal(frame.image[..., 1], np.round(gray / 257))


def test_a_cmyk_jpeg_and_a_palette_with_transparency_keep_their_colours(tmp_path):
    image = Image.fromarray(picture(0))
    image.convert("CMYK").save(tmp_path / "0.jpg", quality=95)
    image.quantize(8).save(tmp_path / "1.png", transparency=0)
    for frame in ImageFolder(tmp_path, NTSC):
        assert_close(frame.image, picture(0))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_images_without_a_known_white_are_refused_by_name(tmp_path, dtype):
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "0.tif")
    with pytest.raises(VideoError, match=r"0\.tif: expected pixels of .*, got mode '[FI]'"):
        list(ImageFolder(tmp_path, NTSC))


def test_a_folder_among_images_is_none_and_a_pipe_or_a_broken_link_is_named(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "0.png")
    (tmp_path / "x.png").mkdir()
    assert len(list(ImageFolder(tmp_path, NTSC))) == 1
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(VideoError, match=r"1\.png: not a regular file"):
        list(ImageFolder(tmp_path, NTSC))
    (tmp_path / "1.png").unlink()
    (tmp_path / "1.png").symlink_to("nowhere")
    with pytest.raises(VideoError, match=r"1\.png: .*No such file"):
        list(ImageFolder(tmp_path, NTSC))


@pytest.mark.parametrize("name", ["in.mp4", "in.mov", "in.mkv", "in.avi", "in.ts"])
@pytest.mark.parametrize(
    "tail", [b"\0" * 100, b"written by a camera", b"\xff" * 3, bytes(range(40))]
)
def test_other_bytes_after_the_video_are_no_truncation(tmp_path, name, tail):
    source = make_video(tmp_path / name)
    source.write_bytes(source.read_bytes() + tail)
    assert len(list(VideoFile(source))) == 8


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, "with header"])
def test_the_size_of_an_avi_may_be_unknown(tmp_path, size):
    source = make_video(tmp_path / "in.avi")
    data = bytearray(source.read_bytes())
    number = len(data) if size == "with header" else size
    data[4:8] = number.to_bytes(4, "little")
    source.write_bytes(data)
    assert len(list(VideoFile(source))) == 8


def test_a_missing_end_that_holds_no_frame_is_no_truncation(tmp_path):
    source = make_video(tmp_path / "in.mp4", options={"movflags": "faststart"})
    source.write_bytes(source.read_bytes() + (10**6).to_bytes(4, "big") + b"free")
    assert len(list(VideoFile(source))) == 8


def test_a_hole_in_a_transport_stream_is_damage(tmp_path):
    random = np.random.default_rng(0)
    source = tmp_path / "in.ts"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for _ in range(30):
            noise = random.integers(0, 255, (64, 96, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode(None))
    data = source.read_bytes()
    packets = [data[first : first + 188] for first in range(0, len(data), 188)]
    # The others are tables, which come again: where they are missing, no picture is.
    of_video = [n for n, packet in enumerate(packets) if packet[1] & 0x1F == 1 and packet[2] == 0]
    del packets[of_video[len(of_video) // 2]]
    source.write_bytes(b"".join(packets))
    with pytest.raises(VideoError, match="damaged"):
        list(VideoFile(source))


@pytest.mark.parametrize(
    "name", [b"a:b", b"http:x", b"bad\xff", b"-x", b"a%03d", "字".encode() * 80]
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_any_name_can_be_read_and_written(tmp_path, monkeypatch, name, suffix):
    monkeypatch.chdir(tmp_path)  # so that names stand at the start of the path
    make_video(tmp_path / f"plain{suffix}").rename(os.fsdecode(name) + suffix)
    os.mkdir("out")
    convert(os.fsdecode(name) + suffix, "out/" + os.fsdecode(name) + suffix)
    monkeypatch.chdir(tmp_path / "out")
    convert(os.fsdecode(name) + suffix, os.fsdecode(name) + suffix)
    assert len(list(VideoFile(Path(os.fsdecode(name) + suffix)))) == 8


def test_a_pipe_is_read(tmp_path):
    source = make_transport_stream(tmp_path / "in.ts")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(source.read_bytes()))
    writer.start()
    convert(tmp_path / "pipe", tmp_path / "out.mp4")
    writer.join()
    assert len(read_video(tmp_path / "out.mp4")[0]) == 10


def test_a_pipe_that_must_be_read_backwards_says_so(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    def write():
        with contextlib.suppress(BrokenPipeError):
            (tmp_path / "pipe").write_bytes(b"no video" * 1000)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(VideoError, match="a pipe cannot be read backwards"):
        VideoFile(tmp_path / "pipe")
    writer.join()


def test_a_cover_picture_is_no_video(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "cover.jpg")
    path = tmp_path / "in.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=44100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        for index in range(20):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), "fltp", "mono")
            samples.sample_rate = 44100
            container.mux(sound.encode(samples))
            if index == 0:
                packet = av.Packet((tmp_path / "cover.jpg").read_bytes())
                packet.stream, packet.time_base = cover, Fraction(1, 90000)
                packet.pts = packet.dts = 0
                container.mux(packet)
        container.mux(sound.encode(None))
    with pytest.raises(VideoError, match="no video, only a cover picture"):
        open_source(str(path), NTSC)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/dev/null", "neither a file nor a pipe"),
        ("https://example.org/a.mp4", "addresses are not read"),
        ("f%03d.png", "for a sequence of images give their folder"),
        ("f*.png", "for a sequence of images give their folder"),
    ],
)
def test_what_is_not_read_says_why(name, message):
    with pytest.raises(VideoError, match=message):
        open_source(name, NTSC)


def test_a_change_of_size_within_a_video_is_told_without_advice_to_programmers(tmp_path):
    parts = [make_video(tmp_path / f"{side}.ts", 4, size=(side, 48)) for side in (32, 64)]
    source = tmp_path / "in.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(VideoError, match="size changed from 32x48 to 64x48") as caught:
        convert(source, tmp_path / "out.mp4")
    assert "reset" not in str(caught.value)
    assert len(read_video(tmp_path / "out.mp4")[0]) == 4


def test_the_result_replaces_what_a_link_names(tmp_path):
    source = make_video(tmp_path / "in.mp4")
    (tmp_path / "real").mkdir()
    (tmp_path / "out.mp4").symlink_to("real/result.mp4")
    convert(source, tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").is_symlink()
    assert len(read_video(tmp_path / "real" / "result.mp4")[0]) == 8


def test_a_pipe_is_no_place_for_a_result(tmp_path):
    os.mkfifo(tmp_path / "out.mp4")
    with pytest.raises(VideoError, match=r"out\.mp4: cannot be written: .* no regular file"):
        convert(make_video(tmp_path / "in.mp4"), tmp_path / "out.mp4")
