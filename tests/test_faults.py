"""What goes wrong around a command: full disks, little memory, Ctrl-C, killed processes; clear ends, nothing torn."""

import ast
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import pqnet
from pqnet.cli import commands
from pqnet.cli.main import main
from pqnet.demo import load_images, model_path
from pqnet.errors import OutOfMemoryError, enough_memory

ROOT = Path(__file__).parents[1]
KILLS = Path(__file__).parent / "fuzz" / "kills.py"

resource = pytest.importorskip("resource")  # not on Windows


@pytest.fixture
def files() -> None:
    pqnet.load(model_path()).save("model.h5")
    np.save("x.npy", load_images()[0][:64])


def alone(code: str) -> subprocess.CompletedProcess[str]:
    """Run code, with ``main`` and ``resource``, in a process of its own."""
    start = "import os, resource, sys\nimport pqnet, pqnet.pipeline\nfrom pqnet.cli.main import main\n"
    command = [sys.executable, "-c", start + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


# -- full disks ------------------------------------------------------------------------------------------------

# A limit on the size of files stands for a disk that is full: the system refuses to write more.
FULL = """
def full(most):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

def run(line):
    print(f"= {main(line.split())}", file=sys.stderr)
"""


@pytest.mark.usefixtures("files")
def test_a_full_disk_leaves_no_torn_file_and_no_lost_layer() -> None:
    pytest.importorskip("onnx")
    quantize = "quantize model.h5 --preset small-blocks --metric none --quiet"
    done = alone(
        f"""{FULL}
full(500)
for line in ("{quantize} -o small.h5", "calibrate model.h5 --calibration x.npy -o stats.h5 --quiet",
             "run model.h5 --input x.npy -o y.npy --quiet", "export onnx model.h5 -o model.onnx --quiet",
             "card model.h5 -o card.md", "{quantize} --checkpoint layers -o small.h5"):
    run(line)
full(12000)  # some layers find room
run("{quantize} --checkpoint layers -o small.h5")
"""
    )
    codes = re.findall(r"^= (\d)$", done.stderr, re.M)
    assert codes == ["2"] * 7, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("= ")]
    assert len(lines) == 7, done.stderr
    for line in lines:
        assert re.match(r"pqnet: error: path: cannot write \S+: File too large", line), line
    assert lines[-1].endswith("what is finished is in layers: the same command goes on from there")
    finished = sorted(os.listdir("layers"))
    assert finished and not any(name.startswith(".") for name in finished)
    assert sorted(os.listdir()) == ["layers", "model.h5", "x.npy"]
    assert main(f"{quantize} --checkpoint layers -o small.h5".split()) == 0
    assert set(finished) < set(os.listdir("layers"))
    assert main(f"{quantize} -o again.h5".split()) == 0
    assert Path("again.h5").read_bytes() == Path("small.h5").read_bytes()


@pytest.mark.usefixtures("files")
def test_a_full_disk_while_training() -> None:
    pytest.importorskip("torch")
    line = "train model.h5 --method lc --preset small-blocks --data x.npy --steps 2 --checkpoint s.pt -o t.h5 --quiet"
    done = alone(f"{FULL}\nfull(500)\nrun('{line}')")
    assert re.fullmatch(r"pqnet: error: (checkpoint|path): cannot write \S*s\.pt: .*\n= 2\n", done.stderr), done.stderr
    assert sorted(os.listdir()) == ["model.h5", "x.npy"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_an_output_that_takes_nothing() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pqnet", "inspect", str(model_path())]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"pqnet: error: cannot write: No space left on device; free some space, .*\n", done.stderr)


# -- memory ----------------------------------------------------------------------------------------------------


def test_little_memory_is_one_line_that_names_the_way_out() -> None:
    pqnet.load(model_path()).save("model.h5")
    np.save("x.npy", np.zeros((60_000, 1, 8, 8), np.float32))
    done = alone("""
        model = pqnet.load("model.h5")
        model([[[[0.0] * 8] * 8]])
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (200 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for line in ("quantize model.h5 --calibration x.npy --preset small-blocks -o small.h5 --quiet --threads 1",
                     "run model.h5 --input x.npy --batch 60000 -o y.npy --quiet --threads 1"):
            print(f"= {main(line.split())}", file=sys.stderr)
    """)
    one = r"pqnet: error: memory: expected more than there is, got: .*; give fewer calibration samples.*\n= 2\n"
    two = r"pqnet: error: .* fewer (samples at a time|or smaller samples at once).*\n= 2\n"  # what lacks differs
    expected = one + two
    assert re.fullmatch(expected, done.stderr), done.stderr
    assert sorted(os.listdir()) == ["model.h5", "x.npy"]


def test_lack_of_memory_is_both_kinds_of_error() -> None:
    for reason in (MemoryError(), RuntimeError("can't start new thread"), RuntimeError("can't allocate memory: 8")):
        with pytest.raises(OutOfMemoryError, match="; give less$") as error, enough_memory("give less"):
            raise reason
        assert isinstance(error.value, MemoryError) and isinstance(error.value, pqnet.PQNetError)
    with pytest.raises(RuntimeError, match="^other$"), enough_memory("give less"):
        raise RuntimeError("other")


# -- interrupts ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("files")
def test_an_interrupt_that_a_library_makes_another_error_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrapped(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass
        except KeyboardInterrupt:
            raise RuntimeError("a callback failed") from None

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(commands.pqnet, "quantize", wrapped)
    line = "quantize model.h5 --calibration x.npy --preset small-blocks --checkpoint layers -o small.h5"
    assert main(line.split()) == 130
    said = "what is finished is in layers: the same command goes on from there"
    assert capsys.readouterr().err == f"pqnet: interrupted; {said}\n"
    assert signal.getsignal(signal.SIGINT) is before


def kill(*arguments: str) -> None:
    done = subprocess.run([sys.executable, str(KILLS), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("and gave the same files\n"), done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("which", ["KILL", "INT"])
def test_killed_and_interrupted_commands_go_on_to_the_same_files(which: str) -> None:
    """A few of the kills of the script."""
    kill("--kills", "6", "--signal", which, "--jobs", "quantize", "save")


# -- clocks ----------------------------------------------------------------------------------------------------


def test_durations_are_by_clocks_that_do_not_jump() -> None:
    """Only the age of files, whose times are those of the wall clock, is by the wall clock."""
    using = set()
    for path in [*(ROOT / "pqnet").rglob("*.py"), *(ROOT / "converters").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "datetime.now", "time.time_ns"):
                using.add(path.relative_to(ROOT).as_posix())
            assert not (isinstance(node, ast.ImportFrom) and node.module == "time"), path
    assert using <= {"pqnet/kernels/cache.py"}
