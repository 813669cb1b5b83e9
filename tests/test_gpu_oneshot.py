"""benchmarks/gpu_oneshot.sh keeps what is finished, and refuses what makes no sense.

`.ci/run` runs all of its stages; here it is stopped after the first.
"""

import os
import re
import signal
import subprocess
import sys
import tarfile

import pytest


@pytest.fixture
def script(pytestconfig):
    path = pytestconfig.rootpath / "benchmarks" / "gpu_oneshot.sh"
    assert os.access(path, os.X_OK)
    return path


def start(script, *arguments):
    return subprocess.Popen(
        [script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "MAX_JOBS": "1"},
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_keeps_the_finished_stages(script, tmp_path, how):
    out = tmp_path / "new" / "folder"
    process = start(script, "--device", "cpu", "--dry-run", out)
    assert process.stdout.readline().split()[:2] == ["environment", "passed"]
    process.send_signal(how)
    said, _ = process.communicate()
    assert process.returncode == 143, said
    lines = (out / "summary.txt").read_text().splitlines()
    assert lines[1].split()[:2] == ["environment", "passed"]
    # In the next stage, or, before it has begun, in none.
    assert re.fullmatch(r"(build|-) +stopped from outside", lines[2])
    assert len(list(out.iterdir())) <= 8
    with tarfile.open(out / "logs.tar.gz") as logs:
        log = logs.extractfile("logs/environment.log").read().decode()
    assert "device cpu" in log


@pytest.mark.parametrize("arguments", [["--device", "tpu"], ["--fast"], ["--device"]])
def test_arguments_without_sense(script, arguments):
    process = start(script, *arguments)
    said, _ = process.communicate()
    assert process.returncode == 2
    assert "gpu_oneshot.sh [--device cuda|cpu] [--dry-run] [OUTPUT_FOLDER]" in said


def test_a_folder_that_cannot_be_written_is_refused(script, tmp_path):
    (tmp_path / "file").touch()
    process = start(script, "--device", "cpu", "--dry-run", tmp_path / "file" / "folder")
    said, _ = process.communicate()
    assert process.returncode == 2
    assert said == f"gpu_oneshot.sh: cannot write to the folder {tmp_path}/file/folder\n"
