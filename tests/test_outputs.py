"""Files that commands write: refused before the work, permissions kept, nothing left of writers that were killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pqnet import PQNetError
from pqnet.cli.main import main
from pqnet.io import check_output, read_container, replaced, write_container

COMMANDS = {
    "convert onnx none.onnx -o {}": ".h5",
    "export onnx none.h5 -o {}": ".onnx",
    "calibrate none.h5 --calibration none.npy -o {}": ".h5",
    "plan none.h5 --calibration none.npy --target-size 10x -o {}": ".yaml",
    "plan none.h5 --calibration none.npy --target-size 10x --dry-run --curve {}": ".csv",
    "quantize none.h5 --preset small-blocks -o {}": ".h5",
    "compress none.h5 --calibration none.npy -o {}": ".h5",
    "compress none.h5 --calibration none.npy -o good.h5 --curve {}": ".csv",
    "finetune none.h5 --teacher none.h5 --data none.npy -o {}": ".h5",
    "diff none.h5 none.h5 -o {}": ".pqd",
    "patch none.h5 none.pqd -o {}": ".h5",
    "train none.h5 --method lc --preset small-blocks --data none.npy -o {}": ".h5",
}
PLACES = {
    "/proc/out": r"expected a file in a folder that can be written to, got /proc/out\.\w+: ",
    "none/out": r"expected a file in an existing folder, got none/out\.",
    "folder": r"expected a file name, got .*folder\.\w+, which is a directory or a device",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_outputs_are_looked_at_first(command: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The inputs do not exist, which nobody gets to see."""
    if command.startswith(("finetune", "train")):
        pytest.importorskip("torch")
    output = place + COMMANDS[command]
    if place == "folder":
        Path(output).mkdir()
    before = os.listdir()
    assert main(command.format(output).split()) == 2
    with pytest.raises(PQNetError, match=f"--(output|curve): {PLACES[place]}"):
        raise PQNetError(capsys.readouterr().err)
    assert os.listdir() == before


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_is_refused_before_is_refused_after(place: str) -> None:
    if place == "folder":
        Path(place).mkdir()
    for write in (check_output, lambda path: write_container(path, "model", {}, {})):
        with pytest.raises(PQNetError):
            write(place)
    check_output("good")
    write_container("good", "model", {}, {})
    check_output("good")
    assert sorted(os.listdir()) == sorted(["good"] + ["folder"] * (place == "folder"))


KILLED = """
import os, signal, sys
from pqnet.io import replaced
with replaced(sys.argv[1]) as temporary, open(temporary, "wb") as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_writer_cleans_up_after_one_that_was_killed() -> None:
    for name in ("a.h5", "b.h5"):
        assert subprocess.run([sys.executable, "-c", KILLED, name]).returncode == -signal.SIGKILL
    left = set(os.listdir())
    assert len(left) == 2
    write_container("a.h5", "model", {}, {})
    assert len(left & set(os.listdir())) == 1  # that of b.h5, which may be much larger, waits for its own
    write_container("b.h5", "model", {}, {})
    assert sorted(os.listdir()) == ["a.h5", "b.h5"]


def test_writers_of_the_same_file_leave_each_other_alone() -> None:
    """In one process and in two; the last one's file stays."""
    with replaced("a.h5") as first:
        Path(first).write_bytes(b"first")
        write_container("a.h5", "model", {"by": "second"}, {})
        code = "from pqnet.io import write_container; write_container('a.h5', 'model', {'by': 'third'}, {})"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert Path(first).read_bytes() == b"first"
        assert read_container("a.h5", "model")[0] == {"by": "third"}
    assert Path("a.h5").read_bytes() == b"first" and os.listdir() == ["a.h5"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o440, 0o755])
def test_permissions_of_a_replaced_file_are_kept(mode: int) -> None:
    write_container("a.h5", "model", {}, {})
    Path("a.h5").chmod(mode)
    with replaced("a.h5") as temporary:
        assert os.stat(temporary).st_mode & 0o777 & ~mode & ~0o600 == 0  # nobody else reads it meanwhile
        Path(temporary).write_bytes(b"new")
    assert Path("a.h5").stat().st_mode & 0o777 == mode and Path("a.h5").read_bytes() == b"new"
