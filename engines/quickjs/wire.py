"""Frames over one blocking socket, as the child sees it: the file descriptor and poll, no socket module."""

import os
import select
from collections import deque
from time import sleep

from engines import frames
from engines.frames import Type

_READ_BYTES = 256 * 1024


class Wire:
    """One stream of frames each way. Raises EOFError at the end of the stream and OSError when it is torn."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._reader = frames.Reader()
        self._inbox: list[frames.Frame] = []
        self._put_off: deque[frames.Frame] = deque()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def next(self) -> frames.Frame:
        """The first frame that was put off, or else the next one."""
        return self._put_off.popleft() if self._put_off else self.receive()

    def put_off(self, frame: frames.Frame) -> None:
        """It is not its turn."""
        self._put_off.append(frame)

    def receive(self) -> frames.Frame:
        """The next frame that was not put off."""
        while not self._inbox:
            data = os.read(self._fd, _READ_BYTES)
            if not data:
                raise EOFError
            self._inbox = self._reader.feed(data)
        return self._inbox.pop(0)

    def receive_within(self, timeout_ms: float) -> frames.Frame | None:
        """The next frame, or None when none had begun to arrive after `timeout_ms`."""
        if not self._inbox and not self._poll.poll(timeout_ms):
            return None
        return self.receive()

    def pause(self, timeout_ms: float) -> None:
        """Let time pass without reading."""
        sleep(timeout_ms / 1000)

    def send(self, kind: Type, inv: int, payload: bytes) -> None:
        view = memoryview(frames.encode(kind, inv, 0, payload))
        while view:
            view = view[os.write(self._fd, view) :]
