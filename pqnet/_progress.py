"""Progress of long work: a bar on a terminal, a plain line every 30 seconds elsewhere. The one place that shows it.

Work says what it does by `progress_bar`, and inside that by `tick` and `ticking`, wherever it happens to be; who called
it decides whether anybody sees that. Of nested bars the outermost one is shown, with what those within it are at. A
thread draws, so that work pays for no more than an assignment, and time goes on during a long product of matrices.
"""

import contextlib
import logging
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar, Token
from typing import Any, TypeVar

from numba.core import event

__all__ = ["LOG", "SHOWN", "Progress", "above_bars", "progress_bar", "tell", "tick", "ticking"]

T = TypeVar("T")
LOG = logging.getLogger("pqnet")
SHOWN = {"shown": True}  # marks records whose text is on the standard error already
DRAW = 0.25  # seconds between two looks at how far work is
LINE = 30.0  # seconds between two lines where there is no terminal
COMPILING = 3.0  # seconds of compiling that are worth a line of their own
BAR = "{{desc}}{percent:3.0f}%|{{bar}}| {rest}"

_current: ContextVar["Progress | None"] = ContextVar("progress", default=None)


class Progress:
    """How far some work is; made by `progress_bar`, used in a ``with`` statement.

    Attributes
    ----------
    n : float
        Units that are done.
    total : float or None
        Of all units.
    """

    def __init__(
        self, show: bool, description: str, unit: str, total: float | None, costs: Mapping[str, float] | None
    ) -> None:
        self.description, self.unit, self.total, self.n = description, unit, total, 0.0
        self.costs = dict(costs or {})
        self.whole = sum(self.costs.values()) if costs else total
        self.spent, self.name, self.noted, self.inner = 0.0, "", "", ""
        self.child: Progress | None = None
        self.parent: Progress | None = None
        self.started = self.since = self.begun = time.monotonic()
        self.before = 0.0  # of what is spent, by an earlier run
        self._show = show
        self._display: _Display | None = None
        self._token: Token[Progress | None] | None = None

    def __enter__(self) -> "Progress":
        self.parent = _current.get()
        self._token = _current.set(self)
        if self.parent is not None:
            self.parent.child = self
        elif self._show or LOG.isEnabledFor(logging.INFO):
            self._display = _Display(self, self._show)
        LOG.debug("%s begins", self.description)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.parent is not None:
            self.parent.child = None
        if self._token is not None:
            _current.reset(self._token)
        if self._display is not None:
            self._display.close()
        if kind is None:
            LOG.debug("%s took %s", self.description, _duration(time.monotonic() - self.started))

    def begin(self, name: str) -> None:
        """Say which unit is begun."""
        self.name, self.inner, self.begun = name, "", time.monotonic()

    def update(self, n: float = 1) -> None:
        """Take note of units that are done, the one begun if there is one."""
        self.n += n
        self.spent += self.costs.get(self.name, 0.0) if self.costs else n
        if self.name:
            LOG.debug("%s: %s in %s", self.description, self.name, _duration(time.monotonic() - self.begun))
        self.name = self.inner = ""

    def skip(self, n: float = 1, name: str = "") -> None:
        """Take note of units that an earlier run has done: they tell nothing of the time that the others take."""
        self.n += n
        self.spent += self.costs.get(name, 0.0) if self.costs else n
        self.before, self.since = self.spent, time.monotonic()

    def extend(self, costs: Mapping[str, float]) -> None:
        """Take note of more units to do, by name."""
        self.costs |= costs
        self.total = (self.total or 0) + len(costs)
        self.whole = (self.whole or 0) + sum(costs.values())

    def note(self, text: str) -> None:
        """Say how it goes, such as the loss."""
        self.noted = text

    @property
    def share(self) -> float | None:
        """How much is done, up to 1; None if nobody knows."""
        return min(1.0, self.spent / self.whole) if self.whole else None

    def left(self, now: float) -> float | None:
        """Return the seconds that the rest takes at the pace until now, None if nobody knows."""
        done = self.spent - self.before
        return (now - self.since) * max(0.0, self.whole - self.spent) / done if self.whole and done > 0 else None

    def count(self) -> str:
        """Return how many units are done; nothing where nobody counts."""
        if self.total is None and self.n == 0:
            return ""
        of = "" if self.total is None else f" of {self.total:.0f}"
        return f"{self.n:.0f}{of} {_plural(self.unit, self.total or self.n)}"

    def chain(self) -> list["Progress"]:
        """Return this one and those within it, the innermost last."""
        found, inner = [self], self.child
        while inner is not None:
            found.append(inner)
            inner = inner.child
        return found


def progress_bar(
    show: bool, description: str, unit: str, total: float | None = None, costs: Mapping[str, float] | None = None
) -> Progress:
    """Return the progress of work that begins now.

    Parameters
    ----------
    show : bool
        Whether to show it, unless it is within other work, which shows it then or does not.
    description : str
        What is done.
    unit : str
        What is counted, in the singular.
    total : float, optional
        How many there are.
    costs : dict of str to float, optional
        What each unit costs, in any measure, by its name: the time left follows these.
    """
    return Progress(show, description, unit, total, costs)


def tick(what: str, done: int | None = None, of: int | None = None) -> None:
    """Say what the innermost work is at, and how far; costs nothing worth mentioning where nobody looks."""
    inside = _current.get()
    if inside is not None:
        inside.inner = what if done is None else f"{what} {done}" if of is None else f"{what} {done} of {of}"


def ticking(what: str, items: Iterable[T], of: int | None = None) -> Iterator[T]:
    """Yield items, and say how many were taken."""
    for i, item in enumerate(items):
        tick(what, i + 1, of)
        yield item


def tell(text: str, stream: Any = None) -> None:
    """Write a line to the standard error, or another stream, above a bar if there is one."""
    stream = stream or sys.stderr
    if stream is None:
        return
    if _bars:
        from tqdm import tqdm

        tqdm.write(text, file=stream)
    else:
        print(text, file=stream, flush=True)


@contextlib.contextmanager
def above_bars() -> Iterator[None]:
    """Let what is printed in the block appear above a bar, if there is one, and not in the middle of it."""
    if not _bars:
        yield
        return
    from tqdm.contrib import DummyTqdmFile

    with contextlib.redirect_stdout(DummyTqdmFile(sys.stdout)):  # type: ignore[type-var]
        yield


class _Compiling(event.Listener):  # type: ignore[misc]
    """What Numba tells while it compiles, which it does on one thread at a time."""

    def __init__(self) -> None:
        self.since: float | None = None
        self.count = self.depth = 0

    def on_start(self, event: Any) -> None:
        """Take note of a kernel, perhaps for another one that is being compiled."""
        self.count, self.depth = self.count + 1, self.depth + 1
        if self.since is None:
            self.since = time.monotonic()

    def on_end(self, event: Any) -> None:
        """Take note that it is there, or that it failed."""
        self.depth -= 1
        if self.depth <= 0:
            self.since, self.depth = None, 0


_compiling = _Compiling()
event.register("numba:compile", _compiling)


_bars: "weakref.WeakSet[Any]" = weakref.WeakSet()  # those on the terminal


class _Display:
    """Shows progress until it is closed, or nothing refers to it any more."""

    told = False  # whether a line has said that kernels are compiled

    def __init__(self, progress: Progress, show: bool) -> None:
        self.progress, self.show = weakref.ref(progress), show and sys.stderr is not None
        self.stream = sys.stderr  # others may be put in its place meanwhile
        self.bar = _make_bar() if self.show and self.stream.isatty() else None
        self.next_line = time.monotonic() + LINE
        self.lines = 0
        self.stop = threading.Event()
        if self.bar is not None:
            self.draw(progress)
            _bars.add(self.bar)
        self.thread = threading.Thread(target=_watch, args=(weakref.ref(self),), name="pqnet progress", daemon=True)
        self.thread.start()

    def look(self) -> bool:
        """Draw; return whether there is still something to show."""
        progress = self.progress()
        if progress is None or self.stop.is_set():
            return False
        self.draw(progress)
        return True

    def draw(self, progress: Progress) -> None:
        now = time.monotonic()
        if self.bar is not None:
            _set_bar(self.bar, progress, now)
        since = _compiling.since
        if since is not None and now - since > COMPILING and not _Display.told:
            _Display.told = True
            self.line(f"{progress.description}: compiling kernels, once on this machine")
        if now >= self.next_line:
            self.next_line = now + LINE
            self.line(_sentence(progress, now))

    def line(self, text: str) -> None:
        """Write a line where there is no bar, and to the log."""
        shown = self.show and self.bar is None
        LOG.info("%s", text, extra=SHOWN if shown else None)
        if shown:
            self.lines += 1
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                tell(f"{time.strftime('%H:%M:%S')} {text}", self.stream)

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        progress = self.progress()
        if progress is None:
            return
        if self.bar is not None:
            _set_bar(self.bar, progress, time.monotonic())
            self.bar.close()
            _bars.discard(self.bar)
        elif self.lines and progress.share == 1:
            self.line(f"{progress.description}: {progress.count()} in {_duration(time.monotonic() - progress.started)}")


def _watch(reference: "weakref.ref[_Display]") -> None:
    """Draw again and again; keeps nothing alive between two times."""
    while True:
        display = reference()
        if display is None or not display.look():
            return
        stop = display.stop
        del display
        if stop.wait(DRAW):
            return


def _make_bar() -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0  # this one is drawn anyway

    return Bar(total=1.0, bar_format="{desc}", dynamic_ncols=True, file=sys.stderr)


def _set_bar(bar: Any, progress: Progress, now: float) -> None:
    chain = progress.chain()
    counted = next((part for part in chain if part.share is not None), progress)  # the outermost that knows its end
    at = chain.index(counted)
    names = [part.description for part in chain[: at + 1]]
    rest = _spaced([f"{counted.count()}{_time_left(counted, now, '<')}", counted.noted, *_inside(chain[at:], now)])
    elapsed = _clock(now - progress.started)
    bar.desc = ", ".join(names)
    if counted.share is None:
        bar.bar_format = "{desc}: " + _escaped(_spaced([elapsed, rest]))
    else:
        bar.n = counted.share
        bar.desc += ": "
        bar.bar_format = BAR.format(percent=100 * counted.share, rest=_escaped(f"{elapsed} {rest}"))
    with contextlib.suppress(OSError, ValueError):
        bar.refresh()


def _sentence(progress: Progress, now: float) -> str:
    """Say how far all is, in one line."""
    chain, parts = progress.chain(), []
    for part in chain:
        share = "" if part.share is None else f" ({part.share:.0%})"
        left = _time_left(part, now, ", about ", " left")
        parts.append(_spaced([f"{part.description}: {part.count()}{share}{left}", part.noted, part.name]))
    inner = _inner(chain)
    return "; ".join([*parts, inner] if inner else parts)


def _inside(chain: list[Progress], now: float) -> list[str]:
    """Say what is done of a unit that is not finished."""
    first, *others = chain
    return [first.name, *(f"{part.description} {part.count()} {part.name}".rstrip() for part in others), _inner(chain)]


def _inner(chain: list[Progress]) -> str:
    if _compiling.since is not None:
        return f"compiling kernels ({_compiling.count})"
    return chain[-1].inner


def _time_left(progress: Progress, now: float, before: str, after: str = "") -> str:
    left = progress.left(now)
    if left is None or progress.share == 1:
        return ""
    return f"{before}{_clock(left) if before == '<' else _duration(left)}{after}"


def _spaced(parts: list[str]) -> str:
    return ", ".join(part for part in parts if part)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _plural(unit: str, n: float) -> str:
    if n == 1:
        return unit
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}es" if unit.endswith("ch") else f"{unit}s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _duration(seconds: float) -> str:
    """Return a duration in words."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
