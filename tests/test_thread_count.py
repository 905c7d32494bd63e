"""The number of threads by default: quota of the container, affinity, environment."""

import os

import pytest

from pqnet import PQNetError, _cgroup, _threads

V2 = "0::{path}\n"
MOUNT2 = "30 23 0:26 {shown} /sys/fs/cgroup rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT1 = "33 32 0:28 {shown} /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
OTHER = (
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.fixture
def system(tmp_path):
    """Return a function that makes the files of a system, and tells the quota found in them."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        _cgroup.cpu_quota.cache_clear()
        return _cgroup.cpu_quota(str(tmp_path))

    return make


def version2(path="/", shown="/", **limits):
    files = {"proc/self/cgroup": V2.format(path=path), "proc/self/mountinfo": OTHER + MOUNT2.format(shown=shown)}
    return files | {f"sys/fs/cgroup/{where.replace('__', '/')}cpu.max": text for where, text in limits.items()}


def version1(path, shown, quota, period, where=""):
    folder = f"sys/fs/cgroup/cpu,cpuacct/{where}"
    return {
        "proc/self/cgroup": f"5:memory:{path}\n4:cpu,cpuacct:{path}\n0::/\n",
        "proc/self/mountinfo": OTHER + MOUNT1.format(shown=shown),
        f"{folder}cpu.cfs_quota_us": quota,
        f"{folder}cpu.cfs_period_us": period,
    }


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (version2(**{"": "150000 100000\n"}), 2),  # the container sees its own group as the root
        (version2(**{"": "1000 100000\n"}), 1),
        (version2(**{"": "max 100000\n"}), None),
        (version2("/a/b", a__b__="max 100000", a__="300000 100000"), 3),  # of a group above
        (version2("/a/b", a__b__="800000 100000", a__="300000 100000"), 3),
        (version2("/host/a", "/host/a", **{"": "200000 100000"}), 2),  # the mount shows a part
        (version2("/host/a", "/other", **{"": "200000 100000"}), 2),
        (version2("/../../a", **{"": "200000 100000"}), 2),
        (version1("/", "/", "250000\n", "100000\n"), 3),
        (version1("/", "/", "-1\n", "100000\n"), None),
        (version1("/docker/a", "/docker/a", "400000", "100000"), 4),
        (version1("/a/b", "/", "50000", "100000", "a/b/"), 1),
        (version1("/", "/", "", "100000"), None),
        ({}, None),
    ],
)
def test_quota_of_the_container(system, files, wanted):
    assert system(files) == wanted


@pytest.mark.parametrize("text", ["", "x y", "100000", "-5 10", "5 0", "1e5 100000", "٣ ٣", "1 2 3", b"\xff\xfe 1"])
def test_limits_that_are_none_are_ignored(system, text):
    assert system(version2(**{"": text})) is None


@pytest.mark.parametrize("text", ["", "-", "a - b", "1 2 3 - cgroup2\n", "- cgroup", ":\n", "0:x\n", b"\xff" * 50])
def test_files_about_groups_that_are_damaged_are_ignored(system, text):
    for name in ("proc/self/cgroup", "proc/self/mountinfo"):
        assert system(version2(**{"": "200000 100000"}) | {name: text}) is None


def test_default_threads(monkeypatch):
    monkeypatch.delenv("PQNET_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "cpu_quota", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert _threads.default_threads() == 6
    monkeypatch.setattr(_threads, "cpu_quota", lambda: 4)
    assert _threads.default_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert _threads.default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # no reason for more than there are
    assert _threads.default_threads() == 4
    for nonsense in ("", "0", "-2", "x", "2.5", "٣", "9" * 400, ",2"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        monkeypatch.setenv("PQNET_NUM_THREADS", nonsense)
        assert _threads.default_threads() == 4
    monkeypatch.setenv("PQNET_NUM_THREADS", " 9 ")
    assert _threads.default_threads() == 9
    assert _threads.default_threads(2) == 2
    with pytest.raises(PQNetError, match="threads: expected"):
        _threads.default_threads(0)
