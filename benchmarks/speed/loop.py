"""The bare limit: LiteRT alone, in a loop over preprocessed pixels, one thread.

A program: `python -m benchmarks.speed.loop FLATBUFFER PIXELS.npy COUNT` waits for a line on its input, so that two of
them start together, and prints the core seconds and the seconds of COUNT photos.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2
_WARM_UP = 20


def bare_loop(flatbuffer: Path, pixels: Path, count: int) -> tuple[float, float]:
    """Core seconds of a photo, and photos a second, of two processes side by side with so many photos each."""
    command = [sys.executable, "-m", "benchmarks.speed.loop", str(flatbuffer), str(pixels), str(count)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None  # noqa: S101 -- a pipe was asked for
        process.stdout.readline()  # it is ready
    answers = []
    for process in processes:
        assert process.stdin is not None  # noqa: S101 -- a pipe was asked for
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        answers.append([float(word) for word in process.communicate()[0].split()])
        if process.returncode:
            raise RuntimeError(f"the bare loop ended with exit code {process.returncode}")
    core = sum(answer[0] for answer in answers) / (PROCESSES * count)
    return core, sum(count / answer[1] for answer in answers)


def main() -> None:
    """Load, warm up, wait, and measure."""
    interpreter, photos = load(Path(sys.argv[1])), np.load(sys.argv[2])
    infer(interpreter, photos, _WARM_UP)
    print("ready", flush=True)
    sys.stdin.readline()
    wall, core = time.perf_counter(), time.process_time()
    infer(interpreter, photos, int(sys.argv[3]))
    print(time.process_time() - core, time.perf_counter() - wall)


def load(flatbuffer: Path) -> Any:
    """The flatbuffer's interpreter, on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=flatbuffer.read_bytes(), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def infer(interpreter: Any, photos: np.ndarray[Any, Any], count: int) -> None:
    """Features of so many photos, the same ones over and over; ``photos`` has shape ``(n, height, width, 3)``."""
    pixels, features = (end[0]["index"] for end in (interpreter.get_input_details(), interpreter.get_output_details()))
    for number in range(count):
        interpreter.set_tensor(pixels, photos[number % len(photos)][np.newaxis])
        interpreter.invoke()
        interpreter.get_tensor(features)


if __name__ == "__main__":
    main()
