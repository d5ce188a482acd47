"""Connections: what one may hold, for how long, and how gRPC is told."""

from __future__ import annotations

from dataclasses import dataclass

_HANDSHAKE_SECONDS = 20.0  # of TLS: who connects and says nothing is hung up on
_PING_ANSWER_SECONDS = 20.0
_LEAST_PING_SECONDS = 10.0  # between a client's pings; more often is answered with "too many pings"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of connections; seconds of 0 mean never."""

    connections: int  # at once, to this port; more are hung up on
    streams: int  # calls of one connection at once; more wait at the client
    message_bytes: int  # of a request
    metadata_bytes: int  # of a request, names and values
    ping_seconds: float  # without a word from a client, after which it is asked whether it is there
    idle_seconds: float  # without a call
    age_seconds: float  # after which a client is asked to connect anew, so that load spreads
    grace_seconds: float  # for the calls of a connection that has reached its age


def channel_options(limits: ConnectionLimits) -> list[tuple[str, int]]:
    """Return what a gRPC server is made with; each was seen to do what it is here for."""
    options = [
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a lottery
        ("grpc.max_receive_message_length", limits.message_bytes),  # unpacked, where it comes packed
        # Between the two gRPC refuses by chance, so that they are the same.
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
        ("grpc.max_concurrent_streams", limits.streams),
        # Those that have ended and are not yet cleared away: without room for them a client at its limit is reset.
        ("grpc.http2.max_deallocating_streams", limits.streams),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", _milliseconds(_HANDSHAKE_SECONDS)),
        # Without the last one a client that pings between its calls would be hung up on at the third ping.
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(_LEAST_PING_SECONDS)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if limits.ping_seconds:
        options += [
            ("grpc.keepalive_time_ms", _milliseconds(limits.ping_seconds)),
            ("grpc.keepalive_timeout_ms", _milliseconds(_PING_ANSWER_SECONDS)),  # for TCP to take the ping
            ("grpc.http2.ping_timeout_ms", _milliseconds(_PING_ANSWER_SECONDS)),  # for the client to answer it
        ]
    if limits.idle_seconds:
        options.append(("grpc.max_connection_idle_ms", _milliseconds(limits.idle_seconds)))
    if limits.age_seconds:
        options += [
            ("grpc.max_connection_age_ms", _milliseconds(limits.age_seconds)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(limits.grace_seconds)),
        ]
    return options


def _milliseconds(seconds: float) -> int:
    return max(1, min(round(seconds * 1000), 2**31 - 1))
