"""The UCI table's machinery: a stack trains each of its networks as it would be alone, and the engine judges it."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import stacks  # noqa: E402
import uci  # noqa: E402

DATA = Path(os.environ.get("DUBITO_UCI", ROOT.parent / "shared/data/uci"))
published_splits = pytest.mark.skipif(not DATA.is_dir(), reason="the published splits are not here (DUBITO_UCI)")


@pytest.fixture
def rows() -> stacks.Rows:
    """Two problems of 40 rows of 3 numbers."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 40, 3, generator=generator)
    return stacks.Rows(inputs, inputs.sum(2) + 0.1 * torch.randn(2, 40, generator=generator))


# --- Stacks ---


def plain(stack: stacks.Stack, at: int) -> nn.Sequential:
    """Return a network of a stack as torch's own layers, without dropout."""
    layers: list[nn.Module] = []
    for weight, bias in zip(stack.weights, stack.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data, linear.bias.data = weight[at].detach().T.clone(), bias[at, 0].detach().clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("outputs", [1, 2])
def test_each_network_is_trained_as_torch_trains_it_alone(rows: stacks.Rows, outputs: int) -> None:
    """Adam with torch's weight decay, the same orders, start and masks: the same weights after three epochs."""
    rates, penalties, how = [0.1, 0.5], [0.01, 0.03], stacks.Training((5,), 3, 16, heteroscedastic=outputs == 2)
    trained = stacks.train(rows, [1, 0], rates, penalties, how, seed=3)
    start = stacks.Stack((3, 5, outputs), rates, 3)
    source, generator = stacks.MaskSource(3), torch.Generator().manual_seed(3)
    networks = [plain(start, at) for at in range(2)]
    optimizers = [
        torch.optim.Adam(
            [
                {"params": [linear.weight for linear in network[::2]], "weight_decay": 2 * penalty},
                {"params": [linear.bias for linear in network[::2]]},
            ]
        )
        for network, penalty in zip(networks, penalties, strict=True)
    ]
    for _ in range(3):
        order = torch.rand(2, 40, generator=generator).argsort(1)
        for chosen in torch.split(order, 16, dim=1):
            masks = start.masks(source, chosen.shape[1])
            for at, (network, problem, rate) in enumerate(zip(networks, [1, 0], rates, strict=True)):
                x, y = rows.inputs[problem, chosen[at]], rows.targets[problem, chosen[at]]
                hidden = torch.relu(network[0](x * masks[0][at] / (1 - rate)))
                out = network[2](hidden * masks[1][at] / (1 - rate))
                if outputs == 2:
                    assert start.bound is not None
                    out = start.bound(out)
                    loss = nn.GaussianNLLLoss()(out[:, 0], y, out[:, 1].exp())
                else:
                    loss = nn.functional.mse_loss(out[:, 0], y)
                optimizers[at].zero_grad()
                loss.backward()
                optimizers[at].step()
    for at, network in enumerate(networks):
        for layer, linear in enumerate(network[::2]):
            torch.testing.assert_close(linear.weight, trained.weights[layer][at].T, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(linear.bias, trained.biases[layer][at, 0], rtol=1e-4, atol=1e-5)


def test_masks_keep_their_share() -> None:
    """Per rate, 0 within 4 standard deviations (false alarm 6e-5 each); 0.005 is no multiple of 1 / 65536."""
    rates = torch.tensor([0.0, 0.005, 0.1, 0.5])
    masks = stacks.MaskSource(1).draw(rates, 200, 300)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    for mask, rate in zip(masks, rates.tolist(), strict=True):
        deviation = math.sqrt(rate * (1 - rate) / mask.numel())
        assert abs(float((mask == 0).double().mean()) - rate) <= 4 * deviation + 1 / 65536


def test_the_likelihood_is_the_mixtures(rows: stacks.Rows) -> None:
    """Summed up chunk by chunk it is that of all draws at once, in the targets' own unit."""
    stack = stacks.Stack((3, 5, 1), [0.3, 0.3], 0)
    scale, noise = torch.tensor([2.0, 3.0]), torch.tensor([0.5, 4.0])
    found = stacks.log_likelihood(stack, rows.inputs, rows.targets, scale, noise, 120, seed=5)
    drawn = stacks.means(stack, rows.inputs, 120, seed=5)
    for at in range(2):
        unit = float(scale[at])
        expected = uci.mixture_negative_log_likelihood(
            drawn[:, at] * unit, np.full(drawn[:, at].shape, float(noise[at])), rows.targets[at].numpy() * unit
        )
        assert float(found[at]) == pytest.approx(-expected, rel=1e-5)


# --- The engine ---


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_engine_draws_what_the_stack_draws(rows: stacks.Rows, outputs: int) -> None:
    """Mean and spread of 4000 draws of each agree: |z| < 5 for 40 means (1e-5 each); deviations to 10 %."""
    stack = stacks.train(rows, [0], [0.3], [0.0], stacks.Training((20,), 20, 16, heteroscedastic=outputs == 2), seed=0)
    scale = uci.Scale(torch.zeros(3), torch.ones(3), torch.tensor(7.0), torch.tensor(2.0))
    head = uci.Head.MEAN if outputs == 1 else uci.Head.MEAN_AND_LOG_VARIANCE
    x = rows.inputs[0]
    engine = uci.engine_of(uci.network_of(stack, 0, scale), head, 0.1 if outputs == 1 else None, x[:2])
    own = engine.draws({"inputs": x}, uci.SamplingSpec(max_draws=4000, design=uci.Design.INDEPENDENT)).mean
    other = stacks.means(stack, x[None], 4000, seed=1)[:, 0] * 2 + 7
    assert own is not None
    drawn = own[..., 0].numpy()
    z = (drawn.mean(0) - other.mean(0)) / np.sqrt((drawn.var(0) + other.var(0)) / 4000)
    assert np.abs(z).max() < 5
    np.testing.assert_allclose(drawn.std(0), other.std(0), rtol=0.1)


# --- The command ---


def make_set(folder: Path, splits: int = 2) -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(60, 3))
    folder.mkdir(parents=True)
    np.savetxt(folder / "data.txt", np.column_stack([inputs, inputs.sum(1) + 0.1 * random.normal(size=60)]))
    files = {"index_features": [0, 1, 2], "index_target": [3], "n_splits": [splits], "n_epochs": [2], "n_hidden": [10],
             "dropout_rates": [0.01, 0.2], "tau_values": [0.5, 5.0]}  # fmt: skip
    for split in range(splits):
        order = random.permutation(60)
        files |= {f"index_train_{split}": order[:54], f"index_test_{split}": order[54:]}
    for name, values in files.items():
        np.savetxt(folder / f"{name}.txt", values)


@pytest.mark.parametrize("protocol", ["paper", "two-layer", "heteroscedastic"])
def test_a_protocol_ends_as_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str) -> None:
    """Two splits of a small set, in one process: each is judged by 10,000 draws or a few more."""
    make_set(tmp_path / "small")
    out = tmp_path / "out.json"
    arguments = [str(tmp_path), "--protocol", protocol, "--out", str(out), "--processes", "1", "--epochs-factor", "150"]
    uci.main(arguments)
    assert "small" in capsys.readouterr().out
    found = json.loads(out.read_text())["sets"]["small"]
    assert found["epochs"] == 300
    assert [each["split"] for each in found["splits"]] == [0, 1]
    for each in found["splits"]:
        assert 10_000 <= each["draws"] < 10_030
        assert each["rate"] in (0.01, 0.2)
        assert (each["tau"] in (0.5, 5.0)) == (protocol == "paper")
        assert each["rmse"] < 1.7  # the target's deviation is sqrt(3)
        assert math.isfinite(each["log_likelihood"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["{data}", "--sets", "small,other"], "--sets other; accepted: small"),
        (["{data}", "--splits", "0"], "--splits 0; accepted: at least 1"),
    ],
)
def test_a_wrong_call_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    make_set(tmp_path / "small")
    with pytest.raises(SystemExit) as ended:
        uci.main([argument.format(data=tmp_path) for argument in arguments])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_processes_share_out_the_splits(tmp_path: Path) -> None:
    """Three splits over two processes come back in order, each from the seed of its process."""
    make_set(tmp_path / "small", splits=3)
    out = tmp_path / "out.json"
    uci.main([str(tmp_path), "--out", str(out), "--processes", "2", "--epochs-factor", "1"])
    assert [each["split"] for each in json.loads(out.read_text())["sets"]["small"]["splits"]] == [0, 1, 2]


def test_a_file_that_is_missing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_set(tmp_path / "small")
    (tmp_path / "small/index_test_1.txt").unlink()
    with pytest.raises(SystemExit):
        uci.main([str(tmp_path), "--processes", "1"])
    assert "index_test_1.txt cannot be read" in capsys.readouterr().err


@published_splits
def test_three_splits_of_yacht_repeat_and_learn(tmp_path: Path) -> None:
    """A tenth of the paper's epochs: the seed alone decides, and a fit is far better than the training mean."""
    found = []
    for name in ("a", "b"):
        out, few = tmp_path / f"{name}.json", ["--splits", "3", "--epochs-factor", "2", "--processes", "1"]
        uci.main([str(DATA), "--sets", "yacht", *few, "--out", str(out)])
        found.append(json.loads(out.read_text())["sets"]["yacht"])
    assert found[0]["splits"] == found[1]["splits"]
    assert found[0]["summary"]["rmse"] < 12  # the target's deviation is 15
    assert found[0]["summary"]["published"] == [1.109, 0.085, -1.554, 0.027]
