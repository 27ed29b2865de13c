"""``fruits serve``: the engine as a service."""

import logging
import os
import socket

import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fruits.errors import FruitsError
from fruits.serve.current import CurrentEngine
from fruits.serve.service import make_app
from fruits.settings import Settings

_LOOPBACK = ["127.0.0.1", "localhost"]


def run(settings: Settings, *, host: str, port: int, workers: int | None, waiting: int, refresh: float) -> None:
    """Answer until the process is ended. ``workers``: photos computed at once; None for one of each core.

    Raises:
        FruitsError: when the port is taken or the address is none of this machine.
    """
    from threadpoolctl import threadpool_limits

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    threads = workers or len(os.sched_getaffinity(0))
    current = CurrentEngine(settings, threads=threads, refresh_seconds=refresh)
    app = make_app(current, threads=threads, waiting=waiting)
    if host in _LOOPBACK:  # a page on the web whose name leads to 127.0.0.1 is refused
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=30))
    # Photos are computed side by side, so each has one thread.
    with _listening(host, port) as listener, threadpool_limits(1):
        logging.getLogger("fruits").info("http://%s:%s answers", *listener.getsockname()[:2])
        server.run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise FruitsError(
            f"{host}:{port}: {error.strerror or error}; choose another --port, or an address of this machine as --host"
        ) from error
    # Connections inherit it. Else the body of an answer would wait 40 ms for the client's acknowledgement of its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
