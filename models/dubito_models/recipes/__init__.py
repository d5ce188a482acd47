"""Training recipes: what one holds, and how the shipped ones (the TOML files beside this) or one's own are read."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from dubito_models.errors import InvalidArgument
from dubito_models.recipes.sections import (
    AnyNetworkSection,
    AugmentationSection,
    CNNSection,
    CO2Section,
    CosineSection,
    DataSection,
    DiabetesSection,
    DigitsSection,
    MLPSection,
    PackingSection,
    PlateauSection,
    ResNetSection,
    RNNSection,
    Section,
    SelectionSection,
    TableSection,
    TransformerSection,
    UCISection,
)


class Recipe(Section):
    """How a network is trained on what; `patience` counts the epochs without a lower validation loss."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    seed: int = Field(default=0, ge=0, lt=2**63)
    epochs: int = Field(ge=1, le=100_000)
    patience: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=2, le=65_536)
    learning_rate: float = Field(gt=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, le=0.5)
    head: Literal["logits", "mean", "mean_and_log_variance"] | None = None
    schedule: Annotated[CosineSection | PlateauSection, Field(discriminator="kind")] = CosineSection()
    augmentation: AugmentationSection = AugmentationSection()
    data: Annotated[DataSection, Field(discriminator="kind")] = DigitsSection()
    selection: SelectionSection | None = None
    packing: PackingSection = PackingSection()
    network: Annotated[AnyNetworkSection, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _something_is_random(self) -> Recipe:
        if not any(self.network.rates):
            raise InvalidArgument("recipe.network", "dropout rates of 0", "at least one dropout rate above 0")
        if self.selection and getattr(self.network, "variant", "") == "concrete":
            raise InvalidArgument(
                "recipe.selection", "rates for variant 'concrete'", "no selection: it learns its rates"
            )
        return self

    def revised(self, changes: Mapping[str, object] | None = None, **given: object) -> Recipe:
        """Return the recipe with other values, validated anew; values that are None are left as they are.

        `changes` holds values of sections, keyed `"section.key"`.
        """
        tables: dict[str, Any] = self.model_dump()
        for key, value in {**(changes or {}), **given}.items():
            if value is None:
                continue
            section, _, name = key.rpartition(".")
            if section and name not in tables[section]:
                kind = tables[section].get("kind", section)
                raise InvalidArgument(f"recipe.{key}", value, f"nothing: {section} of kind {kind!r} has no {name}")
            (tables[section] if section else tables)[name] = value
        return _validated(tables)

    def at_rate(self, rate: float) -> Recipe:
        """Return the recipe for one candidate of its selection: every dropout rate above 0 is `rate`."""
        return _validated({**self.model_dump(), "selection": None, "network": self.network.at_rate(rate)})


_SECTIONS: dict[int | str, type[Section]] = {
    "mlp": MLPSection,
    "cnn": CNNSection,
    "resnet": ResNetSection,
    "rnn": RNNSection,
    "transformer": TransformerSection,
    "cosine": CosineSection,
    "plateau": PlateauSection,
    "augmentation": AugmentationSection,
    "digits": DigitsSection,
    "diabetes": DiabetesSection,
    "uci": UCISection,
    "co2": CO2Section,
    "table": TableSection,
    "selection": SelectionSection,
    "packing": PackingSection,
}
_UNIONS = ("network", "schedule", "data")


def _validated(tables: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place = first["loc"]
    # A discriminated union puts its choice into the path; the file has no such key.
    path = [str(key) for index, key in enumerate(place) if not (index == 1 and place[0] in _UNIONS)]
    given, accepted = str(first["input"]), first["msg"]
    if first["type"] == "extra_forbidden":
        section = _SECTIONS[place[-2]] if len(place) > 1 else Recipe
        given, accepted = "an unknown key", ", ".join(section.model_fields)
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
