"""Receipts: what was signed comes back whole; whatever was changed, cut or signed by others is refused by its name."""

from __future__ import annotations

import hmac
import stat
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dubito_models.errors import InvalidArgument
from dubito_models.predictive import Validity
from dubito_service.observing.receipts import (
    DAY,
    Classified,
    Receipt,
    make_key_file,
    new_key,
    new_prediction_id,
    read_inputs,
    read_key,
    sign,
    verify,
    write_inputs,
)
from observed import KEY, NOW, classified, regressed

RANDOM = np.random.default_rng(0)
FULL = classified(
    RANDOM.dirichlet(np.ones(3), 4),
    answer=Classified(RANDOM.dirichlet(np.ones(3), 4), RANDOM.random((4, 3)) > 0.5),
    stream="ward 7",
    coverage=0.9,
    served_coverage=0.87,
    groups=np.array([-1, 0, 3, 2**40]),
    inputs={"x": RANDOM.normal(size=(4, 6)).astype(np.float32), "mask": np.ones((4, 2), bool)},
)
SIGNED = sign(FULL, KEY)


def read(data: bytes, key: bytes = KEY, now: float = NOW, days: float = 30.0) -> Receipt:
    return verify(data, key, now=now, days=days)


def same(one: Any, other: Any) -> bool:
    """Whether two receipts, or parts of them, hold the same."""
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and np.array_equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(other) and all(
            same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)
        )
    return bool(one == other)


@pytest.mark.parametrize(
    "receipt",
    [
        FULL,
        classified(np.full((1, 3), 1 / 3), validity=Validity.NONE, calibration_id="", scoring=None, epistemic=None),
        regressed(np.zeros((2, 3))),
        regressed(np.zeros((2, 1)), served_coverage=0.0, stream="s"),
    ],
)
def test_what_was_signed_is_read_back(receipt: Receipt) -> None:
    assert same(read(sign(receipt, KEY)), receipt)


@given(place=st.integers(0, len(SIGNED) - 1), bit=st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_no_bit_can_be_changed(place: int, bit: int) -> None:
    changed = bytearray(SIGNED)
    changed[place] ^= 1 << bit
    with pytest.raises(InvalidArgument, match=r"^receipt: .* not signed by this server's key"):
        read(bytes(changed))


def test_every_byte_counts_and_none_may_be_added_or_taken() -> None:
    for place in range(len(SIGNED)):
        changed = bytearray(SIGNED)
        changed[place] = (changed[place] + 1) % 256
        for data in (bytes(changed), SIGNED[:place], SIGNED[place + 1 :], SIGNED + SIGNED[: place + 1]):
            with pytest.raises(InvalidArgument, match=r"^receipt: "):
                read(data)


@given(st.binary(max_size=200))
def test_bytes_of_no_receipt_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"^receipt: "):
        read(data)


def test_another_servers_receipt_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not signed by this server's key"):
        read(SIGNED, key=b"l" * 32)


def test_a_receipt_is_good_for_its_days_and_no_longer() -> None:
    assert same(read(SIGNED, now=NOW + 30 * DAY), FULL)
    with pytest.raises(InvalidArgument, match=r"issued 30\.1 days ago; accepted: receipts of the last 30 days"):
        read(SIGNED, now=NOW + 30.1 * DAY)
    assert same(read(SIGNED, now=NOW - 60), FULL)  # the clocks of replicas differ a little
    with pytest.raises(InvalidArgument, match="days ago"):
        read(SIGNED, now=NOW - DAY)


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"", b"\x0a\x01a"])
def test_something_that_was_signed_but_is_no_receipt_is_refused(payload: bytes) -> None:
    """As one of another release may be: the signature is right, and what it is of cannot be read."""
    mac = hmac.digest(KEY, b"dubito receipt 1\x00" + payload, "sha256")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read(b"\x01" + mac + payload)


def test_the_size_that_is_foreseen_is_about_the_size_it_has() -> None:
    for rows in (1, 10, 1000):
        receipt = classified(np.full((rows, 3), 1 / 3))
        assert len(sign(receipt, KEY)) <= receipt.bytes <= len(sign(receipt, KEY)) + 1024


def test_ids_are_128_bits_that_do_not_repeat() -> None:
    ids = {new_prediction_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(bytes.fromhex(one)) for one in ids} == {16}


def test_inputs_are_stored_as_they_are() -> None:
    assert FULL.inputs is not None
    assert same(read_inputs(write_inputs(FULL.inputs)), FULL.inputs)


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    """Also where many servers start at once."""
    path = tmp_path / "receipt.key"
    keys: list[bytes] = []
    threads = [threading.Thread(target=lambda: keys.append(make_key_file(path))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(keys) == {read_key(path)}
    assert len(keys) == 16
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert make_key_file(tmp_path / "other.key") != keys[0]


def test_a_key_that_is_missing_or_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"^receipt_key_file: .*No such file"):
        read_key(tmp_path / "nowhere")
    (tmp_path / "short").write_bytes(b"secret\n")
    with pytest.raises(InvalidArgument, match=r"of 6 bytes; accepted: a file of 32 to 4096 bytes"):
        read_key(tmp_path / "short")
    (tmp_path / "long").write_bytes(bytes(5000))
    with pytest.raises(InvalidArgument, match="4096"):
        read_key(tmp_path / "long")
    (tmp_path / "good").write_bytes(new_key().hex().encode() + b"\n")
    assert len(read_key(tmp_path / "good")) == 64
