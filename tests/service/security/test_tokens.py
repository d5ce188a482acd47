"""Tokens: a hash on disk, scopes, rates and an end; a file that changes is taken up, a bad one is not."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from dubito_models.errors import InvalidArgument
from dubito_service.errors import Forbidden, TooManyCalls, Unauthenticated
from dubito_service.security.scopes import Scope
from dubito_service.security.tokens import Bucket, Tokens, add_token, digest_of, new_secret, read_tokens
from dubito_service.token_command import token as command

from ..conftest import Clock

HASH = digest_of("x").hex()
NOW = datetime(2030, 1, 1, tzinfo=UTC).timestamp()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def add(path: Path, name: str, scopes: Sequence[Scope] = (Scope.PREDICT,), **more: object) -> str:
    secret = new_secret()
    add_token(path, secret, name, scopes, **more)  # type: ignore[arg-type]
    return secret


def opened(path: Path, clock: Clock) -> Tokens:
    return Tokens(path, clock, lambda: NOW)


def test_a_token_is_known_by_its_hash_alone(path: Path, clock: Clock) -> None:
    first, second = add(path, "mobile"), add(path, "batch", (Scope.PREDICT, Scope.OBSERVE))
    text = path.read_text()
    assert first not in text
    assert second not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tokens = opened(path, clock)
    assert tokens.check(first, Scope.PREDICT).name == "mobile"
    assert tokens.check(second, Scope.OBSERVE).name == "batch"
    assert first not in repr(tokens.check(first, Scope.PREDICT))


@pytest.mark.parametrize("secret", [None, "", "dubito_", "x" * 10_000, "\u00fc", HASH])
def test_who_brings_no_token_that_is_known_is_refused_and_not_quoted(
    path: Path, clock: Clock, secret: str | None
) -> None:
    add(path, "mobile")
    with pytest.raises(Unauthenticated) as caught:
        opened(path, clock).check(secret, Scope.PREDICT)
    assert not secret or secret not in str(caught.value)


def test_a_scope_includes_no_other_and_the_refusal_names_the_one_needed(path: Path, clock: Clock) -> None:
    secret = add(path, "operator", (Scope.ADMIN,))
    tokens = opened(path, clock)
    tokens.check(secret, Scope.ADMIN)
    with pytest.raises(Forbidden, match="the token operator is for admin; this call needs the scope predict"):
        tokens.check(secret, Scope.PREDICT)


def test_an_expired_token_is_unauthenticated(path: Path, clock: Clock) -> None:
    old = add(path, "old", expires=datetime.fromtimestamp(NOW, UTC))
    good = add(path, "good", expires=datetime.fromtimestamp(NOW + 1, UTC))
    tokens = opened(path, clock)
    tokens.check(good, Scope.PREDICT)
    with pytest.raises(Unauthenticated, match="the token old, which has expired"):
        tokens.check(old, Scope.PREDICT)


def test_a_bucket_holds_its_burst_and_refills_by_its_rate() -> None:
    bucket = Bucket(rate=2.0, burst=3.0, held=3.0, filled=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(0.25) == pytest.approx(0.25)
    assert bucket.take(0.5) == 0.0
    assert bucket.take(0.4) > 0  # a clock that goes back gives nothing
    assert [bucket.take(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_over_many_seconds_a_rate_lets_through_what_it_says(path: Path, clock: Clock) -> None:
    secret = add(path, "mobile", rate=5.0, burst=2)
    tokens = opened(path, clock)
    taken = 0
    for _ in range(1000):
        clock.now += 0.01
        taken += not tokens.short(tokens.check(secret, Scope.PREDICT))
    assert abs(taken - (10 * 5 + 2)) <= 1


def test_what_is_over_the_rate_is_told_when_to_come_back(path: Path, clock: Clock) -> None:
    secret = add(path, "mobile", rate=4.0, burst=1)
    tokens = opened(path, clock)
    tokens.spend(tokens.check(secret, Scope.PREDICT))
    with pytest.raises(TooManyCalls, match="the token mobile is good for 4 requests a second") as caught:
        tokens.spend(tokens.check(secret, Scope.PREDICT))
    assert caught.value.retry_after == pytest.approx(0.25)


def test_a_file_that_changes_is_taken_up_and_what_is_left_of_a_rate_stays(path: Path, clock: Clock) -> None:
    kept = add(path, "kept", rate=1.0)
    gone = add(path, "gone")
    tokens = opened(path, clock)
    tokens.spend(tokens.check(kept, Scope.PREDICT))
    tables = path.read_text().split("[[token]]")
    path.write_text("[[token]]".join(tables[:2]))
    new = add(path, "new")
    tokens.check(gone, Scope.PREDICT)  # looked at no more than once a second
    clock.now += 1.0
    tokens.check(new, Scope.PREDICT)
    assert tokens.short(tokens.check(kept, Scope.PREDICT)) == 0.0
    assert tokens.short(tokens.check(kept, Scope.PREDICT)) == pytest.approx(1.0)
    with pytest.raises(Unauthenticated):
        tokens.check(gone, Scope.PREDICT)


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("[[token]"), lambda path: path.unlink()])
def test_a_bad_new_file_is_reported_once_and_the_old_tokens_stay(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, spoil: object
) -> None:
    secret = add(path, "mobile")
    good = path.read_text()
    tokens = opened(path, clock)
    spoil(path)  # type: ignore[operator]
    for _ in range(3):
        clock.now += 1.0
        tokens.check(secret, Scope.PREDICT)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    path.write_text(good)
    late = add(path, "late")
    clock.now += 1.0
    tokens.check(late, Scope.PREDICT)
    assert secret not in caplog.text


ENTRY = f'[[token]]\nname = "a"\nsha256 = "{HASH}"\nscopes = ["predict"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[token]", "no TOML"),
        ("a = 1", "with a bad a"),
        (ENTRY.replace("predict", "root"), "token.0.scopes.0"),
        (ENTRY.replace('["predict"]', "[]"), "token.0.scopes"),
        (ENTRY.replace(HASH, "x" * 64), "token.0.sha256"),
        (ENTRY.replace('"a"', '"a b"'), "token.0.name"),
        (ENTRY + "rate = 0\n", "token.0.rate"),
        (ENTRY + "rate = inf\n", "token.0.rate"),
        (ENTRY + "burst = 3\n", "burst needs a rate"),
        (ENTRY + "expires = 2030-01-01\n", "token.0.expires"),
        (ENTRY + "expires = 2030-01-01T00:00:00\n", "token.0.expires"),  # of which place?
        (ENTRY + "token = 'clear'\n", "token.0.token"),
        (ENTRY * 2, "the name a twice"),
        (ENTRY + ENTRY.replace('"a"', '"b"'), "sha256"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_place(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(InvalidArgument, match="tokens: got") as caught:
        read_tokens(path)
    assert said in str(caught.value)
    assert "clear" not in str(caught.value)


def test_an_absent_file_is_refused(path: Path) -> None:
    with pytest.raises(InvalidArgument, match="a file that can be read"):
        read_tokens(path)


def test_the_command_prints_a_token_once_and_adds_its_hash(path: Path, clock: Clock) -> None:
    runner = CliRunner()
    options = ["--scope", "predict", "--scope", "admin", "--rate", "5", "--days", "2"]
    made = runner.invoke(command, ["new", "mobile", *options, "--file", str(path)])
    assert made.exit_code == 0
    [secret] = made.stdout.split()
    [known] = read_tokens(path)
    assert (known.name, known.digest, known.rate, known.burst) == ("mobile", digest_of(secret), 5.0, 5.0)
    assert known.scopes == {Scope.PREDICT, Scope.ADMIN}
    assert known.expires > datetime.now(UTC).timestamp()
    again = runner.invoke(command, ["new", "mobile"], env={"DUBITO_TOKENS": str(path)})
    assert again.exit_code == 2
    assert "a name that" in again.stderr
    second = runner.invoke(command, ["new", "batch"], env={"DUBITO_TOKENS": str(path)})
    assert [each.name for each in read_tokens(path)] == ["mobile", "batch"]
    assert secret not in second.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a b"], "name: got a b"),
        (["a", "--burst", "2"], "burst needs a rate"),
        (["a", "--rate", "-1"], "rate: got -1"),
        (["a", "--days", "nan"], "days: got nan; accepted: more than 0, at most 100000"),
        (["a", "--days", "0"], "days: got 0.0; accepted: more than 0, at most 100000"),
        (["a", "--days", "inf"], "days: got inf; accepted: more than 0, at most 100000"),
    ],
)
def test_the_command_refuses_in_one_line_and_writes_nothing(path: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(command, ["new", *arguments, "--file", str(path)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["new", "a", "--file", str(tmp_path / "no" / "tokens.toml")])
    assert result.exit_code == 2
    assert os.strerror(2) in result.stderr
