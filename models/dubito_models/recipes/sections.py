"""The sections of a recipe: what may stand in each table of its TOML file, and within which bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dubito_models.manifest import MAX_FAN_OUT


def _several(value: object) -> object:
    return (value,) if isinstance(value, (int, float)) else value


Width = Annotated[int, Field(ge=1, le=16_384)]
Rate = Annotated[float, Field(ge=0, le=0.95)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1, max_length=32, strict=False)]
Rates = Annotated[
    tuple[Rate, ...],
    Field(min_length=1, max_length=32, strict=False, description="one for all layers, or one per layer"),
    BeforeValidator(_several),
]


class Section(BaseModel):
    """A table of a recipe: frozen, no key unknown, every value of its own type and bounded."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# --- Data ---


class DigitsSection(Section):
    """`[data]` with `kind = "digits"`: scikit-learn's images of 8x8 pixels, ten classes."""

    kind: Literal["digits"] = "digits"


class DiabetesSection(Section):
    """`[data]` with `kind = "diabetes"`: scikit-learn's patients, one number to predict."""

    kind: Literal["diabetes"]


class UCISection(Section):
    """`[data]` with `kind = "uci"`: a folder in the format of the UCI experiments of Gal & Ghahramani 2016."""

    kind: Literal["uci"]
    path: str | None = None
    split: int = Field(default=0, ge=0, le=100_000)


class CO2Section(Section):
    """`[data]` with `kind = "co2"`: the months of Mauna Loa, the next `horizon` from the last `window`."""

    kind: Literal["co2"]
    window: int = Field(default=36, ge=2, le=10_000)
    horizon: int = Field(default=24, ge=1, le=10_000)


class TableSection(Section):
    """`[data]` with `kind = "table"`: one's own .csv or .parquet file, `target` being the column to predict."""

    kind: Literal["table"]
    path: str | None = None
    target: str | None = None
    task: Literal["classification", "regression"] | None = None
    drop: Annotated[tuple[str, ...], Field(strict=False)] = ()


DataSection = DigitsSection | DiabetesSection | UCISection | CO2Section | TableSection


# --- Networks ---


class NetworkSection(Section):
    """`[network]`: the arguments of one of the reference architectures, and which of them are dropout rates."""

    @property
    def rates(self) -> tuple[float, ...]:
        """Every dropout rate that the network is given."""
        rates = [getattr(self, name) for name in self.rate_fields()]
        return tuple(rate for given in rates for rate in (given if isinstance(given, tuple) else (given,)))

    @classmethod
    def rate_fields(cls) -> list[str]:
        """Return the names of the arguments that are dropout rates."""
        return [name for name in cls.model_fields if name == "dropout" or name.endswith(("_dropout", "_depth"))]

    def at_rate(self, rate: float) -> dict[str, object]:
        """Return the section's arguments with every dropout rate above 0 set to `rate`."""
        changed: dict[str, object] = self.model_dump()
        for name in self.rate_fields():
            given = getattr(self, name)
            if isinstance(given, tuple):
                changed[name] = tuple(rate if old else 0.0 for old in given)
            else:
                changed[name] = rate if given else 0.0
        return changed


class MLPSection(NetworkSection):
    """`[network]` with `kind = "mlp"`."""

    kind: Literal["mlp"]
    widths: Widths
    dropout: Rates
    input_dropout: Rate = 0.0
    variant: Literal["standard", "alpha", "dropconnect", "concrete"] = "standard"


class CNNSection(NetworkSection):
    """`[network]` with `kind = "cnn"`."""

    kind: Literal["cnn"]
    widths: Widths
    convolutions: int = Field(default=2, ge=1, le=8)
    channel_dropout: Rates
    head_width: Width = 128
    head_dropout: Rate
    variant: Literal["standard", "concrete"] = "standard"


class ResNetSection(NetworkSection):
    """`[network]` with `kind = "resnet"`."""

    kind: Literal["resnet"]
    widths: Widths
    blocks: int = Field(default=2, ge=1, le=64)
    pre_activation: bool = False
    stochastic_depth: Rate
    head_dropout: Rate = 0.0


class RNNSection(NetworkSection):
    """`[network]` with `kind = "rnn"`."""

    kind: Literal["rnn"]
    cell: Literal["lstm", "gru"] = "lstm"
    width: Width
    layers: int = Field(default=1, ge=1, le=16)
    bidirectional: bool = False
    pooling: Literal["last", "mean"] = "last"
    input_dropout: Rate = 0.0
    hidden_dropout: Rate = 0.0
    output_dropout: Rate = 0.0
    weight_dropout: Rate = 0.0


class TransformerSection(NetworkSection):
    """`[network]` with `kind = "transformer"`."""

    kind: Literal["transformer"]
    width: Width
    layers: int = Field(default=2, ge=1, le=64)
    heads: int = Field(default=4, ge=1, le=128)
    feedforward: Width | None = None
    positions: Literal["learned", "sinusoidal"] = "learned"
    pooling: Literal["mean", "class"] = "mean"
    dropout: Rate
    attention_dropout: Rate = 0.0
    embedding_dropout: Rate = 0.0
    stochastic_depth: Rate = 0.0


AnyNetworkSection = MLPSection | CNNSection | ResNetSection | RNNSection | TransformerSection


# --- How it is trained ---


class CosineSection(Section):
    """`[schedule]` with `kind = "cosine"`: half a wave from the learning rate down to `floor`, over all epochs."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(default=0.0, ge=0, le=1)


class PlateauSection(Section):
    """`[schedule]` with `kind = "plateau"`: times `factor` after `patience` epochs that did not improve."""

    kind: Literal["plateau"]
    factor: float = Field(default=0.5, gt=0, lt=1)
    patience: int = Field(default=5, ge=0, le=100_000)
    floor: float = Field(default=0.0, ge=0, le=1)


class AugmentationSection(Section):
    """`[augmentation]`: every image of every epoch is turned and moved, uniformly within these bounds."""

    rotation_degrees: float = Field(default=0.0, ge=0, le=180)
    shift_pixels: float = Field(default=0.0, ge=0, le=64)

    @property
    def changes(self) -> bool:
        """Whether any image is changed at all."""
        return self.rotation_degrees > 0 or self.shift_pixels > 0


class SelectionSection(Section):
    """`[selection]`: one network is trained at each of these rates; the validation likelihood of its draws decides."""

    rates: Annotated[
        tuple[Annotated[float, Field(gt=0, le=0.95)], ...], Field(min_length=2, max_length=32, strict=False)
    ]


# --- How it is packed ---


class PackingSection(Section):
    """`[packing]`: what `pack` trades for speed in the version that comes of it."""

    precision: Literal["float32", "bfloat16"] = "float32"
    fan_out: int | None = Field(default=None, ge=1, le=MAX_FAN_OUT)
