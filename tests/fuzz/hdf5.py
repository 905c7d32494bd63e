"""Reads hostile HDF5 files as `pqnet.io.read_arrays` does, many in one process.

A process for each, as pqnet has it, takes 200 times as long. Where the one for many dies or takes too long, pqnet is
asked.
"""

import io
import os
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any
from unittest import mock

import numpy as np

import pqnet.io
from pqnet import FormatError
from pqnet.io import arrays

__all__ = ["read_arrays"]

SECONDS = 1  # of CPU for a file
LENGTH = struct.Struct("<Q")


class Reader:
    """The process for many; called, it stands for `subprocess.Popen` of the one for a single file."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, command: list[str], **_: Any) -> "Answer":
        program, *arguments = command[2:]
        if self.process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen([sys.executable, __file__, program], **pipes)
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("\0".join(arguments).encode() + b"\n")
            self.process.stdin.flush()
            length = self.process.stdout.read(LENGTH.size)
            return Answer(self.process.stdout.read(*LENGTH.unpack(length)))
        except (BrokenPipeError, struct.error):  # it died
            self.stop()
            return Answer(b"")

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            with suppress(BrokenPipeError):
                self.process.communicate()
        self.process = None


class Answer:
    """What is used of a process that has answered."""

    def __init__(self, answer: bytes) -> None:
        self.stdout = io.BytesIO(answer)

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def kill(self) -> None:
        pass


reader = Reader()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return what `pqnet.io.read_arrays` returns, or raise what it raises."""
    try:
        with mock.patch.object(arrays, "subprocess", Namespace(Popen=reader, PIPE=None, DEVNULL=None)):
            return pqnet.io.read_arrays(path)
    except FormatError as reason:
        if arrays.CRASHED not in str(reason):
            raise
    return pqnet.io.read_arrays(path)


def main(program: str) -> None:
    """Answer the files that lines name, until there are no more."""
    sys.path.insert(0, os.path.dirname(program))
    import hdf5_child

    out, hdf5_child.limit_process = sys.stdout.buffer, lambda *_: None
    for line in sys.stdin.buffer:
        path, limit, seconds, *what = line.decode().rstrip("\n").split("\0")
        answer = io.BytesIO()
        sys.stdout = io.TextIOWrapper(answer)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        hdf5_child.main(path, int(limit), int(seconds), *what)
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(LENGTH.pack(len(answer.getvalue())) + answer.getvalue())
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1])
