"""A proxy before an S3 server that holds requests back, and drops answers.

`python -m benchmarks.speed.slow_proxy PORT SECONDS DROPPED` prints its own port. It passes bytes on: what a client
sends at once is a request, and an answer begins where a server sends `HTTP/`. Of each DROPPED answers it cuts one off,
with its connection; 0 drops none.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CHUNK = 1 << 18


@contextmanager
def slow_proxy(port: int, seconds: float = 0.0, *, dropped: int = 0) -> Iterator[str]:
    """The address of a proxy before a port of this machine, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.slow_proxy", str(port), str(seconds), str(dropped)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603 -- our own
    try:
        assert process.stdout is not None  # noqa: S101 -- a pipe was asked for
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


async def serve(port: int, seconds: float, dropped: int) -> None:
    """Pass requests on after so many seconds, and answers at once, but for those that are dropped."""
    answers = count(1)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)

        async def requests() -> None:
            try:
                while part := await reader.read(_CHUNK):
                    if seconds:
                        await asyncio.sleep(seconds)
                    upstream_writer.write(part)
                    await upstream_writer.drain()
            finally:
                upstream_writer.close()

        async def replies() -> None:
            try:
                while part := await upstream_reader.read(_CHUNK):
                    is_dropped = dropped and part.startswith(b"HTTP/") and next(answers) % dropped == 0
                    writer.write(part[: len(part) // 2] if is_dropped else part)
                    await writer.drain()
                    if is_dropped:
                        break
            finally:
                writer.close()

        await asyncio.gather(requests(), replies(), return_exceptions=True)

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
