"""The first calls of a process: `python first_call.py cuda triton stream`.

Each operator is called once, as the process's first use of the device but for making its input:
"plain", in a "thread", on a side "stream", or captured in a "graph" after one call. Prints a word
an operator; an exception, and exit code 1, if a result is wrong.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]
import device_checks as checks
import samples


def in_thread(call: checks.Call, arguments: tuple[Any, ...]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call(*arguments)))
    thread.start()
    thread.join()
    return found[0]


def on_side_stream(call: checks.Call, arguments: tuple[Any, ...]) -> Any:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = call(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    return out


def captured(call: checks.Call, arguments: tuple[Any, ...]) -> Any:
    graph, outputs = checks.capture(call, arguments)
    checks.poison(outputs)
    graph.replay()
    return outputs


HOW = {
    "plain": lambda call, arguments: call(*arguments),
    "thread": in_thread,
    "stream": on_side_stream,
    "graph": captured,
}


def main() -> None:
    device, backend, how = sys.argv[1:]
    samples.use_device(torch.device(device))
    for sample in checks.typical(["channels_last"], [torch.float16]):
        arguments = sample.arguments()
        out = HOW[how](checks.by_backend(sample.operator, backend), arguments)
        samples.check_result(sample, arguments, out)
        print(f"{sample.operator}:right")


if __name__ == "__main__":
    main()
