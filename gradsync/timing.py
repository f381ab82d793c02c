"""The clock of one replica (or server): phases of a step and step times, measured once for all methods.

On a CPU a phase is an interval of the monotonic clock. On a GPU it is the interval between two CUDA events
on the current stream, read only when the epoch is over: the host never waits for the device inside a step,
so measuring does not slow down what it measures. Work that another stream overlaps (DDP's buckets) is not
visible in a phase; the probe measures what of it is exposed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch.profiler import record_function

from gradsync.position import here

T = TypeVar("T")


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done all that it was given. Nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class StepClock:
    """Collects phases and steps between ``start_epoch`` and ``finish_epoch``."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._named = False
        self.start_epoch()

    def start_epoch(self) -> None:
        self._phases: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self._steps: list[Any] = []

    def phase(self, name: str) -> _Phase | _NamedPhase:
        """Context manager: its block counts towards phase ``name``."""
        phase = _Phase(self, name, self._phases[name])
        return _NamedPhase(phase, name) if self._named else phase

    @contextmanager
    def named_phases(self) -> Iterator[None]:
        """Within the block, phases have their names in a trace by torch.profiler."""
        self._named = True
        yield
        self._named = False

    def steps(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, each of which begins a step; waiting for it counts towards ``data_wait``."""
        iterator = iter(batches)
        while True:
            start = self.now()
            here.next_step()
            with self.phase("data_wait"):
                batch = next(iterator, None)
            if batch is None:
                here.finish_steps()
                return
            self._steps.append(start)
            yield batch

    def now(self) -> Any:
        """A point in time: seconds on a CPU, a recorded event on a GPU."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def finish_epoch(self) -> tuple[dict[str, float], list[float]]:
        """Seconds of each phase in total, and seconds of each step. Waits for the device."""
        ends = [*self._steps[1:], self.now()] if self._steps else []
        synchronize(self._device)
        phases = {
            name: sum(self.seconds(start, end) for start, end in spans) for name, spans in self._phases.items()
        }
        steps = [self.seconds(start, end) for start, end in zip(self._steps, ends, strict=True)]
        self.start_epoch()
        return phases, steps

    def seconds(self, start: Any, end: Any) -> float:
        """Between two points of ``now``; on a GPU, only once the device has passed both."""
        return start.elapsed_time(end) / 1000 if self._on_gpu else end - start


class _Phase:
    def __init__(self, clock: StepClock, name: str, spans: list[tuple[Any, Any]]) -> None:
        self._clock, self._name, self._spans = clock, name, spans

    def __enter__(self) -> None:
        here.begin(self._name)
        self._start = self._clock.now()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._spans.append((self._start, self._clock.now()))


class _NamedPhase:
    """A phase that a trace shows; apart, because it costs microseconds that only a trace is worth."""

    def __init__(self, phase: _Phase, name: str) -> None:
        self._phase, self._span = phase, record_function(name)

    def __enter__(self) -> None:
        self._span.__enter__()
        self._phase.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._phase.__exit__(*error)
        self._span.__exit__(*error)


class Traffic:
    """Bytes and messages, counted where they are handed to a communication call."""

    def __init__(self) -> None:
        self.bytes_sent = self.bytes_received = self.messages = 0

    def sent(self, tensor: torch.Tensor) -> None:
        self.bytes_sent += tensor.nbytes
        self.messages += 1

    def received(self, tensor: torch.Tensor) -> None:
        self.bytes_received += tensor.nbytes
        self.messages += 1

    def take(self) -> dict[str, int]:
        """The counts since the last call."""
        counts = {"bytes_sent": self.bytes_sent, "bytes_received": self.bytes_received, "messages": self.messages}
        self.bytes_sent = self.bytes_received = self.messages = 0
        return counts
