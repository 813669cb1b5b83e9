import subprocess
import sys
import textwrap
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tdnet.video import (
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
from tdnet.video.images import natural_key
from tdnet.video.reader import upright

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
    with pytest.raises(VideoError, match=r"unknown kind of output.*\.mp4"):
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
