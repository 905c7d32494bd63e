"""A classifier behind HTTP, with the standard library alone.

    python examples/service.py small.h5 --port 8080
    curl --data-binary @photo.jpg http://localhost:8080/classify     # an image, if the file says how (pqnet.ImageInput)
    curl --data-binary @x.npy http://localhost:8080/classify         # samples of the network's input, (n, ...)
    curl http://localhost:8080/health

Connections are served by a pool of threads. What they ask is put into a queue of bounded length, from which one thread
takes all that came within a few milliseconds and runs it as one batch. A new file under the same name takes the place
of the model while requests are served; a damaged one, or one with another input, does not. SIGTERM ends the service
after what it has accepted is answered.
"""

import argparse
import io
import json
import logging
import queue
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pqnet
from pqnet import PQNetError
from pqnet.io import network_digest, read_numpy

LOG = logging.getLogger("service")
MAX_PIXELS = 32 << 20  # of an image: a small file can hold a large one
NPY = b"\x93NUMPY"


class Refused(Exception):
    """A request that gets an answer with an error: the status and why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Version(NamedTuple):
    """One model and the name that answers give it: the beginning of its fingerprint."""

    model: pqnet.Model
    name: str
    input: str


def read_version(path: Path) -> Version:
    """Load a model of one input with a free number of samples."""
    model = pqnet.load(path)
    free = [name for name, (shape, _) in model.inputs.items() if shape[:1] == (None,)]
    if len(model.inputs) != 1 or not free:
        raise PQNetError(f"model: expected one input with a free batch axis, got {model.inputs}")
    return Version(model, network_digest(model.graph)[:12], free[0])


class Classifier:
    """A model that requests share, in batches, and that can be replaced.

    Parameters
    ----------
    path : Path
        Model file; a new one under this name is taken within ``poll`` seconds.
    max_batch : int
        Samples that are run together, and that one request may have.
    max_wait : float
        Seconds that the first request of a batch waits for others.
    max_queue : int
        Requests that wait; more are refused.
    """

    def __init__(
        self,
        path: Path,
        max_batch: int = 32,
        max_wait: float = 0.005,
        max_queue: int = 64,
        top: int = 5,
        poll: float = 1.0,
    ) -> None:
        self.path, self.max_batch, self.max_wait, self.top, self.poll = path, max_batch, max_wait, top, poll
        self.problem: str | None = None  # why the file that is there now is not what answers come from
        self.batches = self.samples = 0
        self._queue: queue.Queue[tuple[np.ndarray, Future] | None] = queue.Queue(max_queue)
        self._stamp = self._stamp_of_file()
        self.version = read_version(path)
        self._warm(self.version)
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._serve, self._watch)]
        for thread in self._threads:
            thread.start()

    def ask(self, body: bytes) -> tuple[str, list[list[tuple[str, float]]]]:
        """Return the version that answered, and the likeliest labels of each sample; raise Refused."""
        samples = self._samples(body)
        answer: Future = Future()
        with self._lock:  # nothing comes behind the end
            if self._closing.is_set():
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the service is ending")
            try:
                self._queue.put_nowait((samples, answer))
            except queue.Full:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are waiting; try later") from None
        return answer.result()

    def close(self) -> None:
        """Answer what waits, and end."""
        with self._lock:
            self._closing.set()
        self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _samples(self, body: bytes) -> np.ndarray:
        """Return the samples of a request, as the network takes them."""
        version = self.version
        shape, dtype = version.model.inputs[version.input]
        try:
            if body.startswith(NPY):
                found = read_numpy(io.BytesIO(body))
            else:
                found = pqnet.prepare(version.model, images=[body])[version.input]
        except PQNetError as reason:
            raise Refused(HTTPStatus.BAD_REQUEST, str(reason)) from None
        fits = len(shape) == found.ndim and all(n in (None, m) for n, m in zip(shape, found.shape, strict=True))
        if not fits or not 1 <= len(found) <= self.max_batch or found.dtype.kind not in "fiub":
            expected = f"1 to {self.max_batch} samples, {dtype} of shape {shape}"
            raise Refused(HTTPStatus.BAD_REQUEST, f"expected {expected}, got {found.dtype} of shape {found.shape}")
        if not np.isfinite(found).all():
            raise Refused(HTTPStatus.BAD_REQUEST, "expected finite numbers, got NaN or infinity")
        return found.astype(dtype) if dtype == "float32" else found

    def _serve(self) -> None:
        """Run batch after batch until the end is asked for."""
        left: tuple[np.ndarray, Future] | None = None
        while (first := left or self._queue.get()) is not None:
            left, batch, until = None, [first], time.monotonic() + self.max_wait
            size = len(first[0])
            while size < self.max_batch:
                try:
                    item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if item is None or size + len(item[0]) > self.max_batch or item[0].shape[1:] != first[0].shape[1:]:
                    left = item
                    if item is None:  # what was accepted before is in this batch
                        self._queue.put(None)
                    break
                batch.append(item)
                size += len(item[0])
            self._answer(batch, size)

    def _answer(self, batch: list[tuple[np.ndarray, Future]], size: int) -> None:
        version = self.version  # one for the whole batch
        try:
            results = self._run(version, np.concatenate([samples for samples, _ in batch]))
        except Exception as reason:
            if len(batch) == 1:
                batch[0][1].set_exception(reason)
                return
            for each in batch:  # one of them is at fault, and spoils only its own answer
                self._answer([each], len(each[0]))
            return
        self.batches, self.samples, at = self.batches + 1, self.samples + size, 0
        for samples, answer in batch:
            answer.set_result((version.name, results[at : at + len(samples)]))
            at += len(samples)

    def _run(self, version: Version, samples: np.ndarray) -> list[list[tuple[str, float]]]:
        """Run samples in a batch of 1, 2, 4, 8 ...: each size has a program of its own, which takes time to make."""
        padded = np.concatenate([samples, samples[:1].repeat(_rounded(len(samples)) - len(samples), 0)])
        outputs = version.model.run({version.input: padded})
        return pqnet.likeliest(version.model, outputs, self.top)[: len(samples)]

    def _warm(self, version: Version) -> None:
        """Make the programs of all batch sizes, where the size of a sample is known."""
        shape, dtype = version.model.inputs[version.input]
        if None not in shape[1:]:
            for size in {_rounded(n) for n in range(1, self.max_batch + 1)}:
                self._run(version, np.zeros((size, *shape[1:]), dtype))

    def _watch(self) -> None:
        """Replace the model when its file is another one."""
        while not self._closing.wait(self.poll):
            stamp = self._stamp_of_file()
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                version = read_version(self.path)
                if version.model.inputs != self.version.model.inputs:
                    expected, got = self.version.model.inputs, version.model.inputs
                    raise PQNetError(f"model: expected the inputs {expected}, got {got}")
                self._warm(version)
            except (PQNetError, OSError) as reason:
                self.problem = str(reason)
                LOG.error("kept model %s: %s", self.version.name, reason)
                continue
            LOG.info("model %s takes the place of %s", version.name, self.version.name)
            self.version, self.problem = version, None

    def _stamp_of_file(self) -> tuple[int, ...] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


def _rounded(n: int) -> int:
    """Return the lowest power of two that is not below n."""
    return 1 << (n - 1).bit_length()


class Server(HTTPServer):
    """Connections served by a pool of threads; those that are too many, or too slow to ask, are closed."""

    request_queue_size = 128  # of the system
    allow_reuse_address = True

    def __init__(
        self,
        address: tuple[str, int],
        classifier: Classifier,
        threads: int = 16,
        max_bytes: int = 8 << 20,
        patience: float = 10.0,
    ) -> None:
        super().__init__(address, Handler)
        self.classifier, self.max_bytes, self.patience = classifier, max_bytes, patience
        self._pool = ThreadPoolExecutor(threads, "connection")
        self._free = threading.BoundedSemaphore(2 * threads)
        self._asking: dict[socket.socket, float] = {}  # connections that have not said all they ask, and until when

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand a connection to the pool; close it if as many as there are threads wait for one."""
        if not self._free.acquire(blocking=False):
            request.setblocking(False)
            with suppress(OSError):
                request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.shutdown_request(request)
            return
        self.expect(request)
        self._pool.submit(self._process, request, client_address)

    def _process(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:  # the client is gone
            pass
        except Exception:
            LOG.exception("a connection failed")
        finally:
            self.heard(request)
            self.shutdown_request(request)
            self._free.release()

    def expect(self, request: socket.socket) -> None:
        """Give a connection `patience` seconds to say what it asks."""
        self._asking[request] = time.monotonic() + self.patience

    def heard(self, request: socket.socket) -> None:
        """Take note that a connection has said all."""
        self._asking.pop(request, None)

    def service_actions(self) -> None:
        """End connections that take too long; called twice a second."""
        now = time.monotonic()
        for request, until in list(self._asking.items()):
            if until < now:
                self._hang_up(request)

    def _hang_up(self, request: socket.socket) -> None:
        self.heard(request)
        with suppress(OSError):
            request.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Take no more connections, answer what was asked, and end; after `serve_forever` has returned."""
        self.server_close()
        for request in list(self._asking):
            self._hang_up(request)
        self._pool.shutdown()
        self.classifier.close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30.0  # of one read or write
    wbufsize = -1  # an answer in one piece

    def do_GET(self) -> None:
        """Answer GET /health."""
        self._reply(self._health)

    def do_POST(self) -> None:
        """Answer POST /classify."""
        self._reply(self._classify)

    def _health(self) -> dict[str, Any]:
        if self.path != "/health":
            raise Refused(HTTPStatus.NOT_FOUND, "there are GET /health and POST /classify")
        it = self.server.classifier
        state = {"status": "ok" if it.problem is None else "stale", "model": it.version.name, "problem": it.problem}
        return state | {"batches": it.batches, "samples": it.samples}

    def _classify(self) -> dict[str, Any]:
        body = self._body()
        if self.path != "/classify":
            raise Refused(HTTPStatus.NOT_FOUND, "there are GET /health and POST /classify")
        name, results = self.server.classifier.ask(body)
        return {"model": name, "results": [[{"label": k, "probability": p} for k, p in row] for row in results]}

    def _body(self) -> bytes:
        length, *others = self.headers.get_all("Content-Length") or [""]
        if "Transfer-Encoding" in self.headers or others or not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "expected one Content-Length")
        if len(length) > 18 or int(length) > self.server.max_bytes:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {self.server.max_bytes} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"expected {length} bytes, got {len(body)}")
        self.server.heard(self.connection)  # it may have to wait longer for its answer
        return body

    def _reply(self, make: Any) -> None:
        """Write what a function returns, or the error that it raises, as JSON."""
        status = HTTPStatus.OK
        try:
            content = make()
        except Refused as reason:
            status, content = reason.status, {"error": str(reason)}
        except PQNetError as reason:  # values that the network refuses
            status, content = HTTPStatus.BAD_REQUEST, {"error": str(reason)}
        except OSError:
            raise
        except Exception:
            LOG.exception("a request failed")
            status, content = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal error"}
        self.server.heard(self.connection)
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status != HTTPStatus.OK:  # what was sent may not have been read
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(data)
        if self.close_connection:
            self._drain()

    def _drain(self) -> None:
        """Read on for a while: a connection that is closed on unread bytes loses the answer."""
        self.wfile.flush()
        self.server.expect(self.connection)
        self.connection.shutdown(socket.SHUT_WR)
        left = self.server.max_bytes
        while left > 0 and (data := self.connection.recv(1 << 16)):
            left -= len(data)

    def handle_one_request(self) -> None:
        """Wait for a request and answer it, within the patience of the server."""
        self.server.expect(self.connection)
        super().handle_one_request()

    def log_message(self, format: str, *args: Any) -> None:
        """Write no line for each request."""
        LOG.debug(format, *args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0: any that is free")
    parser.add_argument("--threads", type=int, default=16, help="of connections")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--max-wait-ms", type=float, default=5.0)
    parser.add_argument("--max-queue", type=int, default=64)
    parser.add_argument("--max-bytes", type=int, default=8 << 20, help="of a request")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds that a client may take to ask")
    parser.add_argument("--top", type=int, default=5, help="labels of each sample")
    parser.add_argument("--poll", type=float, default=1.0, help="seconds between two looks at the model file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with suppress(ModuleNotFoundError):
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns from here on, and refuses twice as many
    classifier = Classifier(args.model, args.max_batch, args.max_wait_ms / 1e3, args.max_queue, args.top, args.poll)
    server = Server((args.host, args.port), classifier, args.threads, args.max_bytes, args.patience)
    # shutdown() waits for the loop that the handler interrupts
    stop = threading.Thread(target=server.shutdown)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.ident or stop.start())
    print(f"ready on http://{args.host}:{server.server_port}, model {classifier.version.name}", flush=True)
    server.serve_forever()
    server.close()


if __name__ == "__main__":
    main()
