"""Frames: calls as bytes on a socket, whole, broken off, lying about their length, or packed to burst."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PREDICT = "/dubito.v1.UncertaintyService/Predict"
SECONDS = 60.0
_WHOLE = 2**24


@dataclass(frozen=True, slots=True)
class Ending:
    """How a server ended a call: by a status, or without one by closing or resetting."""

    status: int | None
    message: str = ""


def opening(method: str = PREDICT, **headers: str | bytes) -> H2Connection:
    """Begin a connection, and a call on its stream 1."""
    connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    connection.send_headers(
        1,
        [
            (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "localhost"),
            ("content-type", "application/grpc"), ("te", "trailers"),
            *((name.replace("_", "-"), value) for name, value in headers.items()),
        ],
    )  # fmt: skip
    return connection


def message(payload: bytes, *, length: int | None = None, packed: bool = False) -> bytes:
    """Return a message with its prefix, which may lie about the length."""
    return struct.pack(">BI", packed, len(payload) if length is None else length) + payload


def _beginnings() -> tuple[bytes, ...]:
    settings = H2Connection(H2Configuration(client_side=True))
    settings.initiate_connection()
    called, half = opening(), opening()
    half.send_data(1, message(b"abc", length=1000))
    return PREFACE, settings.data_to_send(), called.data_to_send(), half.data_to_send()


BEGINNINGS = _beginnings()


def bomb(size: int) -> bytes:
    """Return so many zeros, packed by gzip to about a thousandth."""
    packer, block = zlib.compressobj(9, zlib.DEFLATED, 31), bytes(2**20)
    whole = b"".join(packer.compress(block) for _ in range(size // 2**20))
    return whole + packer.flush()


def call(
    address: tuple[str, int], data: bytes, *, end: bool = True, method: str = PREDICT, **headers: str | bytes
) -> Ending:
    """Make a call with these bytes for its messages, and return how it was ended; within the time of the socket."""
    connection = opening(method, **headers)
    with socket.create_connection(address, timeout=SECONDS) as raw:
        left = memoryview(data)
        while left or end:
            window = min(connection.local_flow_control_window(1), connection.max_outbound_frame_size, len(left))
            if window or not left:
                connection.send_data(1, bytes(left[:window]), end_stream=end and window == len(left))
                left = left[window:]
                raw.sendall(connection.data_to_send())
                if not left:
                    break
                continue
            found = _read(raw, connection)
            if found is not None:
                return found
        raw.sendall(connection.data_to_send())
        if not end:
            raw.shutdown(socket.SHUT_WR)
        while True:
            found = _read(raw, connection)
            if found is not None:
                return found


def _read(raw: socket.socket, connection: H2Connection) -> Ending | None:
    """Take what the server sends next; None where the call goes on."""
    try:
        received = raw.recv(2**16)
        events = connection.receive_data(received) if received else [ConnectionTerminated()]
        raw.sendall(connection.data_to_send())
    except (OSError, ProtocolError):
        return Ending(None)
    for event in events:
        found = _ending(event)
        if found is not None:
            return found
    return None


def _ending(event: Event) -> Ending | None:
    if isinstance(event, (ResponseReceived, TrailersReceived)) and event.headers is not None:
        fields = {str(name): str(value) for name, value in event.headers}
        if "grpc-status" in fields:
            return Ending(int(fields["grpc-status"]), fields.get("grpc-message", ""))
    return Ending(None) if isinstance(event, (ConnectionTerminated, StreamReset, StreamEnded)) else None


def throw(address: tuple[str, int], data: bytes) -> None:
    """Send bytes and no more, and read until the server hangs up, or says nothing for a while."""
    with socket.create_connection(address, timeout=0.2) as raw, contextlib.suppress(OSError):
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(2**16):
            pass


def garbage(seed: int) -> bytes:
    """Return bytes that are wrong somewhere: before the preface, in a frame's head, inside a frame, at the end."""
    source = random.Random(seed)
    good = opening()
    good.send_data(1, message(source.randbytes(source.randrange(200))), end_stream=True)
    return _HARM[seed % len(_HARM)](source, good.data_to_send())


def _noise(source: random.Random, good: bytes) -> bytes:
    return source.randbytes(source.randrange(1, 2000))


def _after(source: random.Random, good: bytes) -> bytes:
    return good + source.randbytes(source.randrange(1, 500))


def _flipped(source: random.Random, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(source.randrange(1, 8)):
        data[source.randrange(len(PREFACE), len(data))] ^= 1 << source.randrange(8)
    return bytes(data)


def _cut(source: random.Random, good: bytes) -> bytes:
    return good[: source.randrange(1, len(good))]


def _frames(source: random.Random, good: bytes) -> bytes:
    """Frames of any type, flags, stream and length, whatever they hold."""
    return good + b"".join(_frame(source) for _ in range(source.randrange(1, 20)))


def _frame(source: random.Random) -> bytes:
    payload = source.randbytes(source.randrange(60))
    length = len(payload) if source.random() < 0.8 else source.randrange(_WHOLE)
    stream = source.choice((0, 1, 1, 3, source.randrange(2**32)))
    return (
        struct.pack(">I", length)[1:]
        + struct.pack(">BBI", source.randrange(12), source.randrange(256), stream)
        + payload
    )


_HARM: tuple[Callable[[random.Random, bytes], bytes], ...] = (_noise, _after, _flipped, _cut, _frames)


def cases(count: int, first: int = 0) -> Iterator[bytes]:
    """Return so many."""
    return (garbage(first + number) for number in range(count))
