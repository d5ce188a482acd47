"""A table's whole way: trained on as a file, packed, served, and asked about by a client with texts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dubito_client import Client
from dubito_client.errors import InvalidArgument
from dubito_client.files import read_table as read_for_client
from dubito_models.package import ModelVersion
from dubito_models.predictive import Regression
from dubito_models.tables import read_table
from houses import pack_houses, write_houses
from served import DUBITO, served

README = Path(__file__).parents[2] / "README.md"
DRAWS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tables")
    write_houses(root / "houses.csv")
    return root


@pytest.fixture(scope="module")
def houses(folder: Path) -> ModelVersion:
    return pack_houses(folder / "repository", folder / "houses.csv")


@pytest.fixture(scope="module")
def target(houses: ModelVersion, folder: Path) -> Iterator[str]:
    with served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def expected(houses: ModelVersion, folder: Path) -> NDArray[np.float64]:
    """The means of the file's rows, in this process, of the numbers that training made of them."""
    table = read_table(folder / "houses.csv", target="price")
    assert np.isnan(table.inputs).any()
    assert (table.inputs[:, 4] == 0).any()  # a rare style
    answer = houses.predict(table.inputs).answer
    assert isinstance(answer, Regression)
    return answer.mean


def test_texts_by_name_are_predicted_as_the_numbers_that_training_made_of_them(
    target: str, folder: Path, expected: NDArray[np.float64]
) -> None:
    with Client(target) as client:
        signature = client.model("houses").inputs[0]
        assert [column.name for column in signature.columns] == ["area", "rooms", "city", "garden", "style"]
        assert signature.columns[2].categories == ("Bern", "Oslo", "Rome")
        answer = client.predict("houses", read_for_client(folder / "houses.csv"))
        assert answer.mean is not None
        np.testing.assert_allclose(answer.mean, expected, rtol=1e-6)
        unknown = {"area": [80], "rooms": ["3"], "city": ["Atlantis"], "garden": [True], "style": [None]}
        standard = client.evaluate("houses", unknown)
        same = client.evaluate("houses", np.float32([[80, 3, 0, 1, 0]]))
        assert standard.mean == same.mean


def test_what_a_client_must_mend_names_the_column(target: str) -> None:
    with Client(target) as client:
        with pytest.raises(InvalidArgument, match=r"inputs\.inputs\.rooms: got no value in row 0"):
            client.predict("houses", {"area": [80], "rooms": [""], "city": [""], "garden": [""], "style": ["old"]})
        with pytest.raises(InvalidArgument, match=r"inputs\['inputs'\]\.columns\['rooms'\]: got nan in row 0"):
            client.predict("houses", np.float32([[80, np.nan, 0, 1, 0]]))


def test_the_command_line_predicts_the_file(target: str, folder: Path, expected: NDArray[np.float64]) -> None:
    output = folder / "answer.npz"
    command = [DUBITO, "predict", "houses", "--server", target, "--input", str(folder / "houses.csv")]
    done = subprocess.run([*command, "--output", str(output)], check=True, capture_output=True, text=True)
    assert "houses version 1" in done.stdout
    with np.load(output) as answer:
        np.testing.assert_allclose(answer["mean"], expected, rtol=1e-6)


def test_the_readmes_example_runs(target: str) -> None:
    examples: list[str] = re.findall(r"```py\n(.*?)```", README.read_text(), flags=re.DOTALL)
    [example] = [each for each in examples if "houses" in each]
    program = example.replace("localhost:50051", target)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 3
