"""The options of commands that ask for draws."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from dubito_batch.command import score
from dubito_client.command import predict
from dubito_client.drawing import drawing, read_stopping
from dubito_client.errors import InvalidArgument
from dubito_client.stopping import Stopping


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"stop": "none"}, Stopping.none()),
        ({"target": 0.05}, Stopping("tolerance", None, 0.05, None)),
        ({"target": 0.05, "of": "mutual_information"}, Stopping("tolerance", "mutual_information", 0.05, None)),
        ({"stop": "decision", "level": 0.9}, Stopping("decision", None, None, 0.9)),
        ({"stop": "threshold", "target": 0.5, "of": "mean"}, Stopping("threshold", "mean", 0.5, None)),
    ],
)  # fmt: skip
def test_options_name_a_rule(given: dict[str, Any], expected: Stopping | None) -> None:
    assert read_stopping(**{"stop": None, "target": None, "of": None, "level": None, **given}) == expected


@pytest.mark.parametrize(("name", "value"), [("of", "mean"), ("level", 0.9)])
def test_what_belongs_to_a_rule_is_refused_without_one(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"{name}: got {value}; accepted: this only with --stop"):
        read_stopping(**{"stop": None, "target": None, "of": None, "level": None, name: value})


def test_predicting_and_scoring_take_the_same_options() -> None:
    """And whoever asks for none of them gets the model's own."""

    @click.command()
    @drawing
    def bare(**options: Any) -> None:
        click.echo(sorted(options.values(), key=str))

    names = {option.name for option in bare.params}
    assert {"draws", "stop", "target", "of", "level", "seed", "design", "estimator", "coverage"} < names
    for command in (predict, score):
        assert names < {option.name for option in command.params}
    assert CliRunner().invoke(bare, []).output == f"{[None] * len(names)}\n"
