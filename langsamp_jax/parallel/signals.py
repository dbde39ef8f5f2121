"""SIGTERM and Ctrl-C as a request to stop at the next step, not as a death in the middle of one."""

import signal
from types import FrameType


class Stopped(Exception):
    """Says that a run was asked to stop, has saved and has stopped."""

    def __init__(self, step: int, number: int):
        super().__init__(f"stopped at step {step:,} and saved; the same command goes on from there")
        self.number = number  # of the signal


class StopSignal:
    """Lets SIGTERM and SIGINT set ``requested`` within the block; a second SIGINT interrupts."""

    def __init__(self) -> None:
        self.requested: int | None = None

    def __enter__(self) -> "StopSignal":
        self._previous = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.requested == signal.SIGTERM:  # a second one must not change how the run ends
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number
