"""Packing, the version on disk, and what must not load."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dubito_models.errors import (
    AuditFailed,
    CalibrationMismatch,
    CorruptVersion,
    InvalidArgument,
    NoDropout,
    UnknownModel,
    UnsupportedNetwork,
)
from dubito_models.package import ModelVersion, load_version
from dubito_models.packing import pack
from dubito_models.predictive import Classification, Regression, Validity
from dubito_models.repository import Repository
from dubito_models.sampling import SamplingSpec
from networks import mlp, sample

Packed = Callable[[str], ModelVersion]


@pytest.fixture
def version(packed: Packed, tmp_path: Path) -> Path:
    """A copy of a packed version that a test may harm."""
    source = packed("mlp").folder
    target = tmp_path / "mlp" / source.name
    shutil.copytree(source, target)
    return target


class Heads(nn.Module):
    """A dropout network with any head."""

    def __init__(self, width: int, final: nn.Module | None = None, flat: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.25), nn.Linear(16, width))
        self.final = final or nn.Identity()
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        out = self.final(self.body(x))
        return out.squeeze(-1) if self.flat else out


@pytest.mark.parametrize(
    ("head", "module", "outputs"),
    [
        ("logits", Heads(3), 3),
        ("logit", Heads(1), 2),
        ("logit", Heads(1, flat=True), 2),
        ("probabilities", Heads(3, nn.Softmax(-1)), 3),
        ("log_probabilities", Heads(3, nn.LogSoftmax(-1)), 3),
        ("mean", Heads(1, flat=True), 1),
        ("mean", Heads(2), 2),
        ("mean_and_log_variance", Heads(4), 2),
    ],
)
def test_every_head_packs_predicts_and_evaluates(tmp_path: Path, head: str, module: nn.Module, outputs: int) -> None:
    task = "regression" if head.startswith("mean") else "classification"
    ready = pack(module, torch.randn(4, 3), repository=tmp_path, name="m", task=task, head=head)
    assert ready.manifest.outputs == outputs
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    answer, standard = ready.predict(x).answer, ready.evaluate(x)
    if isinstance(answer, Classification):
        assert answer.probabilities.shape == (5, outputs)
        np.testing.assert_allclose(answer.probabilities.sum(-1), 1.0, atol=1e-6)
        assert standard.probabilities is not None
        np.testing.assert_allclose(standard.probabilities.sum(-1), 1.0, atol=1e-6)
    else:
        assert isinstance(answer, Regression)
        assert answer.mean.shape == (5, outputs)
        assert answer.interval is not None
        assert (answer.interval[..., 0] <= answer.interval[..., 1]).all()
        assert (answer.aleatoric_variance is not None) == (head == "mean_and_log_variance")


def test_the_logit_head_is_the_two_class_logits_head(tmp_path: Path) -> None:
    one = Heads(1)
    two = Heads(2)
    with torch.no_grad():
        two.load_state_dict(one.state_dict() | {
            "body.3.weight": torch.cat([torch.zeros(1, 16), one.body[3].weight]),
            "body.3.bias": torch.cat([torch.zeros(1), one.body[3].bias]),
        })  # fmt: skip
    x = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    answers = [
        pack(m, torch.randn(2, 3), repository=tmp_path, name=h, task="classification", head=h).predict(x).answer
        for m, h in ((one, "logit"), (two, "logits"))
    ]
    np.testing.assert_allclose(answers[0].probabilities, answers[1].probabilities, atol=1e-6)  # type: ignore[union-attr]


def test_a_constant_noise_is_the_aleatoric_part(tmp_path: Path) -> None:
    ready = pack(
        Heads(1),
        torch.randn(2, 3),
        repository=tmp_path,
        name="m",
        task="regression",
        head="mean",
        noise_variance=[0.25],
    )
    x = np.zeros((2, 3), np.float32)
    answer = ready.predict(x, SamplingSpec(quantiles=(0.5,))).answer
    assert isinstance(answer, Regression)
    assert answer.aleatoric_variance == pytest.approx(0.25)
    assert answer.epistemic_variance is not None
    np.testing.assert_allclose(answer.total_variance, answer.epistemic_variance + 0.25)
    assert answer.quantiles is not None
    assert answer.quantiles.shape == (2, 1, 1)
    assert ready.evaluate(x).aleatoric_variance == pytest.approx(0.25)


def test_versions_count_up_and_a_given_number_is_never_overwritten(tmp_path: Path) -> None:
    options = {"repository": tmp_path, "name": "m", "task": "classification", "head": "logits"}
    assert pack(mlp(), torch.randn(2, 6), **options).version == 1
    assert pack(mlp(), torch.randn(2, 6), **options).version == 2
    assert pack(mlp(), torch.randn(2, 6), **options, version=7).version == 7
    with pytest.raises(InvalidArgument, match="version"):
        pack(mlp(), torch.randn(2, 6), **options, version=7)
    assert Repository(tmp_path).scan() == {"m": [1, 2, 7]}
    assert Repository(tmp_path).load("m").version == 7
    assert not [entry for entry in (tmp_path / "m").iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize(
    "noise", [0.1, [0.1], [[0.1] * 4], [0.1, 0.1, 0.1, -1.0], [0.1] * 3 + [float("nan")], ["x"] * 4]
)
def test_a_noise_variance_is_a_number_for_each_target(tmp_path: Path, noise: object) -> None:
    with pytest.raises(InvalidArgument, match=r"noise_variance: got .* accepted: a list of 4 finite numbers >= 0"):
        pack(
            mlp(),
            torch.randn(3, 6),
            repository=tmp_path,
            name="m",
            task="regression",
            head="mean",
            noise_variance=noise,  # type: ignore[arg-type]
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"task": "ranking"}, "task"),
        ({"head": "mean"}, "head"),
        ({"name": "a/b"}, "name"),
        ({"name": ""}, "name"),
        ({"class_names": ["a"]}, "class_names"),
        ({"output": "x"}, "output"),
        ({"draws": 0}, "draws"),
        ({"seed": -1}, "seed"),
        ({"version": 0}, "version"),
        ({"noise_variance": [1.0]}, "noise_variance"),
        ({"head": "probabilities"}, "head"),
    ],
)
def test_bad_arguments_are_named_and_leave_nothing_on_disk(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    options = {"name": "m", "task": "classification", "head": "logits"} | change
    with pytest.raises(InvalidArgument) as caught:
        pack(mlp(), torch.randn(3, 6), repository=tmp_path, **options)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_per_pixel_or_token_is_refused_with_advice(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Dropout(0.5))
    with pytest.raises(InvalidArgument, match="one prediction per row"):
        pack(module, torch.randn(2, 1, 4, 4), repository=tmp_path, name="m", task="classification", head="logits")


class RowsTalk(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x - x.mean(0), 0.5, self.training)


class Different(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) * (2.0 if self.training else 1.0)


class Dead(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.0 * nn.functional.dropout(x, 0.5, self.training)


class FoldedOtherwise(nn.Module):
    """Rows folded behind the windows, so that one mask cannot be tiled over rows."""

    def forward(self, x: Tensor) -> Tensor:  # (B, 6)
        windows = torch.cat([x[:, :3], x[:, 3:]])  # (2 B, 3), window-major
        drawn = nn.functional.dropout(windows, 0.5, self.training)
        rows = x.shape[0]
        return torch.cat([drawn[:rows], drawn[rows:]], 1)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (RowsTalk(), "rows influence each other"),
        (Different(), "behaves differently in training mode"),
        (Dead(), "does not move the prediction"),
        (FoldedOtherwise(), "rows influence each other, or an axis holds"),
    ],
)
def test_a_network_that_breaks_a_law_is_not_packed(tmp_path: Path, module: nn.Module, reason: str) -> None:
    with pytest.raises(AuditFailed, match=reason):
        pack(module, torch.randn(3, 6), repository=tmp_path, name="m", task="regression", head="mean")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [3, 9, 10, 11])
def test_a_network_that_makes_much_of_rounding_is_packed_all_the_same(tmp_path: Path, seed: int) -> None:
    """Its terms of hundreds cancel to a prediction near 0, so that sums in another order differ by more than 1e-5."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Dropout(0.005), nn.Linear(512, 1))
        x = torch.randn(8, 8)
    with torch.no_grad():
        network[3].weight.mul_(1000)
        network[3].bias.zero_()
        network[3].bias.sub_(network.eval()(x).mean())
    ready = pack(network, x, repository=tmp_path, name="m", task="regression", head="mean")
    assert ready.manifest.parity < 1e-3


def test_rows_that_influence_each_other_a_little_are_not_put_down_to_rounding(tmp_path: Path) -> None:
    class Whispers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Heads(1, flat=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x + 1e-3 * x.mean(0))

    with pytest.raises(AuditFailed, match="rows influence each other"):
        pack(Whispers(), torch.randn(8, 3), repository=tmp_path, name="m", task="regression", head="mean")


def test_buffers_that_change_in_training_mode_are_refused(tmp_path: Path) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.calls.add_(1.0)
            return nn.functional.dropout(x, 0.5, self.training)

    with pytest.raises(UnsupportedNetwork, match="calls"):
        pack(Counter(), torch.randn(3, 6), repository=tmp_path, name="m", task="regression", head="mean")


def test_packing_keeps_the_modules_modes_and_needs_dropout(tmp_path: Path) -> None:
    module = mlp()
    module[2].eval()
    pack(module, torch.randn(2, 6), repository=tmp_path, name="m", task="classification", head="logits")
    assert module.training
    assert not module[2].training
    with pytest.raises(NoDropout):
        pack(nn.Linear(6, 2), torch.randn(2, 6), repository=tmp_path, name="n", task="classification", head="logits")


def test_a_version_loads_in_a_process_that_has_never_seen_its_class(packed: Packed) -> None:
    version = packed("cnn")
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from dubito_models.package import load_version\n"
        "answer = load_version(Path(sys.argv[1])).predict(np.ones((2, 1, 8, 8), np.float32)).answer\n"
        "print(repr(answer.probabilities.tolist()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(version.folder)], capture_output=True, text=True, check=True)
    ours = version.predict(np.ones((2, 1, 8, 8), np.float32)).answer
    assert isinstance(ours, Classification)
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), ours.probabilities, atol=1e-6)


def test_no_path_of_the_packing_machine_is_in_the_version(packed: Packed) -> None:
    import zipfile

    folder = packed("encoder").folder
    with zipfile.ZipFile(folder / "program.pt2") as archive:
        texts = [archive.read(name) for name in archive.namelist() if name.endswith(".json")]
    here = str(Path(__file__).parent).encode()
    assert not any(here in text for text in [*texts, (folder / "manifest.json").read_bytes()])
    assert "networks.py:" in (folder / "manifest.json").read_text()


@pytest.mark.parametrize("name", ["program.pt2", "standard.onnx"])
def test_a_changed_cut_off_or_missing_file_does_not_load(version: Path, name: str) -> None:
    good = (version / name).read_bytes()
    for bad in (good[:-1], good[: len(good) // 2], b"", good + b"\0", good[:100] + b"\0" + good[101:]):
        (version / name).write_bytes(bad)
        with pytest.raises(CorruptVersion, match=f"{name}: its checksum"):
            load_version(version)
    (version / name).unlink()
    with pytest.raises(CorruptVersion, match=f"{name}: cannot be read"):
        load_version(version)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extra": 1}, "extra"),
        ({"format": 2}, "format"),
        ({"group_size": 0}, "group_size"),
        ({"version": 3}, "folder says otherwise"),
        ({"head": "banana"}, "head"),
        ({"sites": []}, "sites"),
    ],
)
def test_a_manifest_that_is_not_ours_does_not_load(version: Path, change: dict[str, object], reason: str) -> None:
    path = version / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptVersion, match=reason):
        load_version(version)


def test_of_mutated_manifests_most_are_refused_and_no_other_error_escapes(version: Path) -> None:
    path, generator = version / "manifest.json", np.random.default_rng(0)
    good, refused = path.read_bytes(), 0
    for _ in range(200):
        data = bytearray(good)
        for place in generator.integers(0, len(data), generator.integers(1, 4)):
            data[place] = generator.integers(0, 256)
        path.write_bytes(data)
        try:
            load_version(version)
        except CorruptVersion:
            refused += 1
    assert refused >= 190


def test_a_half_written_version_is_not_one(version: Path) -> None:
    (version / "manifest.json").write_text((version / "manifest.json").read_text()[:200])
    with pytest.raises(CorruptVersion, match=r"manifest\.json"):
        load_version(version)
    (version / "manifest.json").unlink()
    with pytest.raises(CorruptVersion, match="not written to its end"):
        load_version(version)


def test_a_packing_killed_before_its_end_leaves_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dubito_models import packing

    def fail(path: Path, data: bytes) -> None:
        if path.name == "manifest.json":
            raise OSError("disk full")
        path.write_bytes(data)

    monkeypatch.setattr(packing, "write_atomically", fail)
    with pytest.raises(OSError, match="disk full"):
        pack(mlp(), torch.randn(2, 6), repository=tmp_path, name="m", task="classification", head="logits")
    assert Repository(tmp_path).scan() == {}
    assert list((tmp_path / "m").iterdir()) == []


def test_packers_at_the_same_time_get_different_numbers(tmp_path: Path) -> None:
    numbers = []

    def run() -> None:
        ready = pack(mlp(), torch.randn(2, 6), repository=tmp_path, name="m", task="classification", head="logits")
        numbers.append(ready.version)

    threads = [threading.Thread(target=run) for _ in range(3)]
    pack(mlp(), torch.randn(2, 6), repository=tmp_path, name="other", task="classification", head="logits")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [1, 2, 3]


def test_a_repository_that_is_not_there_and_a_model_that_is_not_in_it(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(InvalidArgument, match="existing folder"):
        Repository(tmp_path / "nothing")
    with pytest.raises(UnknownModel):
        Repository(repository).load("nothing")
    with pytest.raises(UnknownModel):
        Repository(repository).load("mlp", 99)


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        (np.ones((2, 6), np.float64), "inputs['input'].dtype"),
        (np.ones((2, 6), np.int32), "inputs['input'].dtype"),
        (np.ones((6,), np.float32), "inputs['input'].shape"),
        (np.ones((2, 7), np.float32), "inputs['input'].shape"),
        (np.ones((0, 6), np.float32), "inputs['input'].shape"),
        (np.full((2, 6), np.nan, np.float32), "inputs['input']"),
        (np.full((2, 6), np.inf, np.float32), "inputs['input']"),
        ({"other": np.ones((2, 6), np.float32)}, "inputs['other']"),
        ({}, "inputs['input']"),
    ],
)
def test_inputs_that_do_not_fit_the_signature_are_named(packed: Packed, inputs: object, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        packed("mlp").predict(inputs)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert caught.value.accepted


def test_two_inputs_need_names_and_equal_rows(packed: Packed) -> None:
    version = packed("two-inputs")
    with pytest.raises(InvalidArgument, match="by name"):
        version.predict(np.ones((2, 7), np.int64))
    with pytest.raises(InvalidArgument, match="rows = 3"):
        version.predict({"tokens": np.ones((2, 7), np.int64), "features": np.ones((3, 3), np.float32)})


@pytest.mark.parametrize(
    "spec",
    [
        {"max_draws": 0}, {"max_draws": -1}, {"min_draws": 0}, {"min_draws": 9, "max_draws": 8}, {"seed": -1},
        {"seed": 2**64}, {"interval_level": 1.0}, {"interval_level": float("nan")}, {"quantiles": (0.5, 0.0)},
    ],
)  # fmt: skip
def test_a_specification_that_makes_no_sense_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        SamplingSpec(**spec)  # type: ignore[arg-type]
    assert caught.value.field in spec


def test_balanced_draws_are_rounded_up_to_whole_groups_and_independent_ones_are_not(packed: Packed) -> None:
    from dubito_models.thinning import Design

    version, x = packed("mlp"), sample("mlp", 2)["input"].numpy()
    assert version.predict(x, SamplingSpec(max_draws=11)).draws.tolist() == [20, 20]
    assert version.predict(x, SamplingSpec(max_draws=11, design=Design.INDEPENDENT)).draws.tolist() == [11, 11]
    assert version.predict(x).draws.tolist() == [40, 40]


def test_a_calibration_is_found_again_and_says_how_far_it_holds(version: Path) -> None:
    ready = load_version(version)
    assert ready.calibration is None
    x = sample("mlp", 200, seed=5)["input"].numpy()
    assert ready.predict(x).calibration_validity is Validity.NONE
    labels = np.random.default_rng(0).integers(0, 4, 200)
    calibration = ready.calibrate(x, labels)
    again = load_version(version)
    assert again.calibration == calibration
    assert again.predict(x).calibration_validity is Validity.EXACT
    assert again.predict(x).calibration_id == calibration.id
    assert again.predict(x, SamplingSpec(seed=9)).calibration_validity is Validity.APPROXIMATE
    assert again.predict(x, SamplingSpec(max_draws=20)).calibration_validity is Validity.APPROXIMATE


def test_a_calibration_that_was_changed_or_is_another_programs_does_not_load(version: Path, tmp_path: Path) -> None:
    ready = load_version(version)
    x = sample("mlp", 50)["input"].numpy()
    calibration = ready.calibrate(x, np.zeros(50, np.int64))
    stored = version / "calibrations" / f"{calibration.id}.json"
    stored.write_text(stored.read_text().replace('"score_rows": 50', '"score_rows": 51'))
    with pytest.raises(CorruptVersion, match="its content is not what its name says"):
        load_version(version)
    other = pack(mlp(), torch.randn(2, 6), repository=tmp_path / "r", name="m", task="classification", head="logits")
    with pytest.raises(CalibrationMismatch):
        other.save_calibration(calibration)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros(20), "integers"),
        (np.zeros(19, np.int64), "shape"),
        (np.full(20, 4), "class numbers"),
        (np.full(20, -1), "class numbers"),
    ],
)
def test_labels_that_are_not_classes_are_refused(packed: Packed, labels: np.ndarray, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        packed("mlp").calibrate(sample("mlp", 20)["input"].numpy(), labels)


@pytest.mark.parametrize(("device", "accepted"), [("cuda", "cpu or auto"), ("tpu", "auto, cpu, cuda")])
def test_a_device_that_is_not_there_is_refused(
    packed: Callable[[str], ModelVersion], monkeypatch: pytest.MonkeyPatch, device: str, accepted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidArgument, match=f"device: got {device}; accepted: {accepted}"):
        load_version(packed("mlp").folder, device=device)
    assert load_version(packed("mlp").folder, device="auto").engine.program.device.type == "cpu"
