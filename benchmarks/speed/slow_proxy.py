"""A proxy before an S3 server that holds each request back: `python -m benchmarks.speed.slow_proxy PORT SECONDS`.

It passes bytes on and knows no HTTP: what a client sends at once is a request. Prints its own port.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CHUNK = 1 << 18


@contextmanager
def slow_proxy(port: int, seconds: float) -> Iterator[str]:
    """The address of a proxy before a port of this machine, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.slow_proxy", str(port), str(seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603 -- our own
    try:
        assert process.stdout is not None  # noqa: S101 -- a pipe was asked for
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


async def serve(port: int, seconds: float) -> None:
    """Pass requests on after so many seconds, and answers at once."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(
            passed_on(reader, upstream_writer, seconds), passed_on(upstream_reader, writer, 0), return_exceptions=True
        )

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Pass what comes on to a writer, each part after so many seconds, until the connection ends."""
    try:
        while part := await reader.read(_CHUNK):
            if seconds:
                await asyncio.sleep(seconds)
            writer.write(part)
            await writer.drain()
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
