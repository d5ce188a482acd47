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
import uci_table  # noqa: E402

DATA = Path(os.environ.get("DUBITO_UCI", ROOT.parent / "shared/data/uci"))
published_splits = pytest.mark.skipif(not DATA.is_dir(), reason="the published splits are not here (DUBITO_UCI)")


@pytest.fixture
def rows() -> stacks.Rows:
    """Two problems of 40 rows of 3 numbers."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 40, 3, generator=generator)
    return stacks.Rows(inputs, inputs.sum(2) + 0.1 * torch.randn(2, 40, generator=generator))


# --- Stacks ---


def fresh(sizes: tuple[int, ...], rates: list[float], seed: int) -> stacks.Stack:
    return stacks.Stack(sizes, rates, torch.Generator().manual_seed(seed))


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
    trained = stacks.train(rows, [1, 0], rates, penalties, [0.0, 0.0], how, seed=3)
    source, generator = stacks.MaskSource(3), torch.Generator().manual_seed(3)
    start = stacks.Stack((3, 5, outputs), rates, generator)
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


def test_a_network_does_not_feel_its_stack(rows: stacks.Rows) -> None:
    """Beside two others or with one of its own kind, two layers deep: given start, orders and masks, the same steps."""
    how = stacks.Training((5, 4), 2, 16)
    whole = stacks.train(rows, [0, 1, 0], [0.1, 0.4, 0.2], [0.0, 0.01, 0.1], [0.0] * 3, how, seed=1)
    other = stacks.train(rows, [0, 1, 1], [0.1, 0.4, 0.5], [0.0, 0.01, 5.0], [0.0] * 3, how, seed=1)
    for one, two in zip(whole.weights + whole.biases, other.weights + other.biases, strict=True):
        torch.testing.assert_close(one[:2], two[:2], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(one[2], two[2])


def test_beta_weighs_the_likelihood_by_the_variance_and_not_its_gradient() -> None:
    """Seitzer et al. 2022: at beta 1 the gradient of the mean is that of the squared error, whatever the variance."""
    outputs = torch.tensor([[[0.5, 1.0], [2.0, -3.0]]] * 2, requires_grad=True)  # two networks, two rows
    targets = torch.tensor([[1.0, 1.5]] * 2)
    normal = torch.distributions.Normal(outputs.detach()[..., 0], (outputs.detach()[..., 1] / 2).exp())
    expected = -normal.log_prob(targets).mean(1) - math.log(2 * math.pi) / 2
    torch.testing.assert_close(stacks.data_loss(outputs.detach(), targets, torch.zeros(2)), expected)
    torch.autograd.backward(stacks.data_loss(outputs, targets, torch.tensor([0.0, 1.0])).sum())
    assert outputs.grad is not None
    variance, gradient = outputs.detach()[0, :, 1].exp(), torch.tensor([-0.5, 0.5]) / 2
    torch.testing.assert_close(outputs.grad[0, :, 0], gradient / variance)
    torch.testing.assert_close(outputs.grad[1, :, 0], gradient)
    torch.testing.assert_close(outputs.grad[0, :, 1], (1 - 0.25 / variance) / 4)
    torch.testing.assert_close(outputs.grad[1, :, 1], (variance - 0.25) / 4)


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
    stack = fresh((3, 5, 1), [0.3, 0.3], 0)
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
    how = stacks.Training((20,), 20, 16, heteroscedastic=outputs == 2)
    stack = stacks.train(rows, [0], [0.3], [0.0], [0.0], how, seed=0)
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
    arguments = [str(tmp_path), "--protocol", protocol, "--out", str(out), "--processes", "1", "--epochs-factor", "500"]
    uci.main(arguments)
    assert "small" in capsys.readouterr().out
    found = json.loads(out.read_text())["sets"]["small"]
    assert found["settings"]["epochs"] == 1000
    assert [each["split"] for each in found["splits"]] == [0, 1]
    for each in found["splits"]:
        assert 10_000 <= each["draws"] < 10_030
        assert each["rate"] in (0.01, 0.2)
        assert (each["tau"] in (0.5, 5.0)) == (protocol == "paper")
        assert each["beta"] in ((0.0, 0.5) if protocol == "heteroscedastic" else (0.0,))
        assert each["rmse"] < 0.8  # the target's deviation is sqrt(3)
        assert math.isfinite(each["log_likelihood"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["{data}", "--sets", "small,other"], "--sets other; accepted: small"),
        (["{data}", "--splits", "0"], "--splits 0; accepted: at least 1"),
        (["{data}", "--seed", "-1"], "--seed -1; accepted: at least 0"),
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


def test_the_seed_decides_and_not_the_processes(tmp_path: Path) -> None:
    """Six splits make two stacks: in one process or in two they come back in order, the same to the bit."""
    make_set(tmp_path / "small", splits=6)
    found = []
    for processes in ("1", "2"):
        out = tmp_path / f"{processes}.json"
        uci.main([str(tmp_path), "--out", str(out), "--processes", processes, "--epochs-factor", "1"])
        found.append(json.loads(out.read_text())["sets"]["small"]["splits"])
    assert [each["split"] for each in found[0]] == list(range(6))
    assert found[0] == found[1]


def test_other_sets_of_a_file_are_kept_and_other_protocols_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set(tmp_path / "small", splits=1)
    make_set(tmp_path / "other", splits=1)
    out = tmp_path / "out.json"
    common = [str(tmp_path), "--out", str(out), "--processes", "1", "--epochs-factor", "1"]
    uci.main([*common, "--sets", "small"])
    before = json.loads(out.read_text())["sets"]["small"]
    assert before["summary"]["rmse_error"] is None  # of one split
    uci.main([*common, "--sets", "other"])
    after = json.loads(out.read_text())
    assert after["sets"]["small"] == before
    assert set(after["sets"]) == {"small", "other"}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        uci.main([*common, "--protocol", "long"])
    [line] = capsys.readouterr().err.splitlines()
    assert "accepted: a new file, or one with results of protocol long" in line


def test_a_file_that_is_missing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_set(tmp_path / "small")
    (tmp_path / "small/index_test_1.txt").unlink()
    with pytest.raises(SystemExit):
        uci.main([str(tmp_path), "--processes", "1"])
    [line] = capsys.readouterr().err.splitlines()
    assert "index_test_1.txt" in line


def test_splits_of_different_sizes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_set(tmp_path / "small")
    np.savetxt(tmp_path / "small/index_train_1.txt", np.arange(50))
    with pytest.raises(SystemExit):
        uci.main([str(tmp_path), "--processes", "1"])
    assert "training splits of [50, 54] rows; accepted: all of one size" in capsys.readouterr().err


def test_the_decay_follows_the_grid_or_the_targets() -> None:
    """l^2 (1 - p) / (2 N tau) at l = .01, p = .2, N = 100: 4e-7 / tau; without a grid tau is 1 / 3^2."""
    assert uci.penalty(uci.Candidate(0, 0.2, 0.5), 100, 3.0) == pytest.approx(8e-7)
    assert uci.penalty(uci.Candidate(0, 0.2, None), 100, 3.0) == pytest.approx(3.6e-6)


def test_z_is_positive_where_better() -> None:
    """Yacht, published .666 +- .049 and -1.250 +- .015: half the RMSE and a likelihood of -2 over two splits."""
    found = uci_table.summarise("yacht", [0.3, 0.366], [-1.9, -2.1], "long")
    assert (found["rmse"], found["rmse_error"]) == pytest.approx((0.333, 0.033))
    assert (found["ll"], found["ll_error"]) == pytest.approx((-2.0, 0.1))
    assert found["published"]["2018 grid"]["rmse_z"] == pytest.approx(0.333 / math.hypot(0.049, 0.033))
    assert found["published"]["2018 grid"]["ll_z"] == pytest.approx(-0.75 / math.hypot(0.015, 0.1))
    assert found["published"]["4000 epochs"]["rmse"] == 0.724


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
    assert found[0]["summary"]["published"]["400 epochs"]["ll"] == -1.554
