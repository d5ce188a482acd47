"""Training recipes: what one holds, and how the shipped ones (the TOML files beside this) or one's own are read."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dubito_models.errors import InvalidArgument


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


class Table(BaseModel):
    """A table of a recipe: frozen, no key unknown, every value of its own type and bounded."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class MLPTable(Table):
    """`[network]` with `kind = "mlp"`."""

    kind: Literal["mlp"]
    widths: Widths
    dropout: Rates


class CNNTable(Table):
    """`[network]` with `kind = "cnn"`."""

    kind: Literal["cnn"]
    widths: Widths
    convolutions: int = Field(default=2, ge=1, le=8)
    channel_dropout: Rates
    head_width: Width = 128
    head_dropout: Rate


class CosineTable(Table):
    """`[schedule]` with `kind = "cosine"`: half a wave from the learning rate down to `floor`, over all epochs."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(default=0.0, ge=0, le=1)


class PlateauTable(Table):
    """`[schedule]` with `kind = "plateau"`: times `factor` after `patience` epochs that did not improve."""

    kind: Literal["plateau"]
    factor: float = Field(default=0.5, gt=0, lt=1)
    patience: int = Field(default=5, ge=0, le=100_000)
    floor: float = Field(default=0.0, ge=0, le=1)


class AugmentationTable(Table):
    """`[augmentation]`: every image of every epoch is turned and moved, uniformly within these bounds."""

    rotation_degrees: float = Field(default=0.0, ge=0, le=180)
    shift_pixels: float = Field(default=0.0, ge=0, le=64)


class Recipe(Table):
    """How a classifier is trained; `patience` counts the epochs without a lower validation NLL."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    seed: int = Field(default=0, ge=0, lt=2**63)
    epochs: int = Field(ge=1, le=100_000)
    patience: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=2, le=65_536)
    learning_rate: float = Field(gt=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, le=0.5)
    schedule: CosineTable | PlateauTable = Field(default=CosineTable(), discriminator="kind")
    augmentation: AugmentationTable = AugmentationTable()
    network: MLPTable | CNNTable = Field(discriminator="kind")

    @model_validator(mode="after")
    def _something_is_random(self) -> Recipe:
        table = self.network
        rates = table.dropout if isinstance(table, MLPTable) else (*table.channel_dropout, table.head_dropout)
        if not any(rates):
            raise InvalidArgument("recipe.network", "dropout rates of 0", "at least one dropout rate above 0")
        return self

    def revised(self, *, seed: int | None = None, epochs: int | None = None) -> Recipe:
        """Return the recipe with another seed or number of epochs, validated anew."""
        changes = {"seed": seed, "epochs": epochs}
        given = {key: value for key, value in changes.items() if value is not None}
        return _validated({**self.model_dump(), **given})


_TABLES: dict[int | str, type[Table]] = {
    "mlp": MLPTable,
    "cnn": CNNTable,
    "cosine": CosineTable,
    "plateau": PlateauTable,
    "augmentation": AugmentationTable,
}


def _validated(tables: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    # A discriminated union puts its choice into the path; the file has no such key.
    path = [str(key) for key in first["loc"] if key not in ("mlp", "cnn", "cosine", "plateau")]
    given, accepted = str(first["input"]), first["msg"]
    if first["type"] == "extra_forbidden":
        table = _TABLES[first["loc"][-2]] if len(first["loc"]) > 1 else Recipe
        given, accepted = "an unknown key", ", ".join(table.model_fields)
    elif first["type"] == "missing":
        given = "nothing"
    raise InvalidArgument(".".join(["recipe", *path]), given, accepted)


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that ship with dubito, sorted."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def read_recipe(name_or_path: str | Path) -> Recipe:
    """Return a shipped recipe by its name, or the one in a file by a path that ends in .toml.

    Raises `InvalidArgument` for a name that no recipe has, a file that cannot be read, and values out of bounds.
    """
    path = Path(name_or_path)
    try:
        if path.suffix == ".toml":
            text = path.read_text("utf-8")
        elif str(name_or_path) in shipped_recipes():
            text = resources.files(__name__).joinpath(f"{name_or_path}.toml").read_text("utf-8")
        else:
            accepted = f"{', '.join(shipped_recipes())}, or the path of a .toml file"
            raise InvalidArgument("recipe", name_or_path, accepted)
        return _validated(tomllib.loads(text))
    except OSError as error:
        raise InvalidArgument("recipe", f"{path} ({error.strerror})", "a file that can be read") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument("recipe", f"{path} ({error})", "a TOML file") from None
