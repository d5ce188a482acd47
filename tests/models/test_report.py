"""The report: one file that stands alone, can be read by everybody, and says what the assessment says."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dubito_models.answering import DRAWN
from dubito_models.curves import Curve, SetCoverage
from dubito_models.evaluating import Assessment, evaluate
from dubito_models.package import ModelVersion
from dubito_models.report import Plate, compose_page, draw_plates, write_report
from dubito_models.report.sheet import DARK, LIGHT, Theme
from dubito_models.rows import Labelled
from judged import assessed, houses, line

Packed = Callable[[str], ModelVersion]
VOID = {"meta", "img", "source", "br", "link"}


class Page(HTMLParser):
    """What a page is made of; fails where a tag is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def classes(packed: Packed) -> Assessment:
    found = assessed(packed("cnn"), 30, shift=True)
    return replace(found, set_coverage=SetCoverage(0.9, 0.87, 1.4))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Assessment:
    version, rows = houses(tmp_path_factory.mktemp("houses"))
    return evaluate(version, rows, "houses.csv:test", shift=True, resamples=20)


@dataclass(frozen=True)
class Shown:
    """An assessment, its charts, and its page as text and as what that is made of."""

    found: Assessment
    plates: tuple[Plate, ...]
    text: str
    page: Page


def shown(found: Assessment) -> Shown:
    plates = draw_plates(found)
    text = compose_page(found, plates)
    return Shown(found, plates, text, Page(text))


@pytest.fixture(scope="module")
def shown_classes(classes: Assessment) -> Shown:
    return shown(classes)


@pytest.fixture(scope="module")
def shown_numbers(numbers: Assessment) -> Shown:
    return shown(numbers)


@pytest.fixture(params=["shown_classes", "shown_numbers"])
def either(request: pytest.FixtureRequest) -> Shown:
    found: Shown = request.getfixturevalue(request.param)
    return found


def test_a_page_needs_nothing_else(either: Shown) -> None:
    """No address of anything outside it, no script, and a policy that forbids both."""
    parsed, text = either.page, either.text
    assert parsed.all("script") == parsed.all("link") == []
    for tag, attributes in parsed.tags:
        for name in ("src", "srcset", "href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), tag
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in text.replace("http-equiv", "")
    [policy] = [each["content"] for each in parsed.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_picture_says_what_it_shows(either: Shown) -> None:
    """In words with figures in them, for the light page and the dark one; every link has its place."""
    parsed = either.page
    pictures = parsed.all("img")
    assert pictures
    assert all(len(each["alt"] or "") > 12 and re.search(r"\d", each["alt"] or "") for each in pictures)
    assert len(parsed.all("picture")) == len(parsed.all("source")) > 0
    assert all(each["media"] == "screen and (prefers-color-scheme: dark)" for each in parsed.all("source"))
    places = {attributes.get("id") for _, attributes in parsed.tags}
    assert {(each["href"] or "")[1:] for each in parsed.all("a")} <= places


def test_tables_have_headers_and_headings_their_order(either: Shown) -> None:
    parsed = either.page
    assert all(each.get("scope") in ("col", "row") for each in parsed.all("th"))
    assert all(each.get("aria-labelledby") for each in parsed.all("table"))
    assert [tag for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)][:2] == ["h1", "h2"]
    assert len(parsed.all("h1")) == 1
    assert [each["lang"] for each in parsed.all("html")] == ["en"]
    for tag in ("header", "main", "footer", "nav", "figcaption"):
        assert parsed.all(tag)


def test_a_page_says_what_was_found(either: Shown) -> None:
    """The verdict, every score with its interval, every chart's caption, every doubtful row."""
    found, parsed = either.found, either.page
    text = " ".join(" ".join(parsed.text).split())
    assert found.verdict.sentence in text
    assert all(warning in text for warning in found.verdict.warnings)
    for measure in found.card.measures:
        assert measure.label in text
    for plate in either.plates:
        assert plate.caption in text
        assert plate.heading in text
    assert all(f"truth {each.truth}, row {each.row}" in text or each.truth in text for each in found.examples)
    assert ("they hold it in 87.0% of these" in text) == (found.set_coverage is not None)


def test_charts_of_either_theme_are_pictures(classes: Assessment, shown_classes: Shown) -> None:
    """Of one size and their theme's paper; the same assessment gives the same bytes."""
    told: list[tuple[int, int]] = []
    plates = draw_plates(classes, lambda done, total: told.append((done, total)))
    charts = [chart for plate in plates for chart in plate.charts]
    assert told == [(done, len(charts)) for done in range(1, len(charts) + 1)]
    assert len({chart.name for chart in charts}) == len(charts)
    for chart in charts:
        assert re.fullmatch(r"[a-z0-9-]+", chart.name)
        for picture, theme in ((chart.light, LIGHT), (chart.dark, DARK)):
            with Image.open(io.BytesIO(picture)) as image:
                assert image.size == (798, 627)
                paper = np.asarray(image.convert("RGB"))[0, 0]
                assert "#{:02x}{:02x}{:02x}".format(*paper) == theme.paper
                assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert plates == shown_classes.plates


def test_a_report_is_a_page_and_its_charts(shown_classes: Shown, tmp_path: Path) -> None:
    """In a folder that is made; what lies there is written over."""
    plates = shown_classes.plates
    for _ in range(2):
        written = write_report(shown_classes.found, plates, tmp_path / "a" / "report")
    assert written == tmp_path / "a" / "report" / "report.html"
    assert written.read_text(encoding="utf-8") == shown_classes.text
    names = {path.name for path in written.parent.iterdir()}
    assert names == {"report.html", *(f"{chart.name}.png" for plate in plates for chart in plate.charts)}
    light = base64.b64encode((written.parent / "coverage.png").read_bytes()).decode()
    assert light in written.read_text(encoding="utf-8")


def test_what_comes_from_a_file_is_text_and_nothing_else(classes: Assessment) -> None:
    """Names of files and classes that look like tags are shown as they are."""
    evil = '<script>alert("x")</script>'
    example = replace(classes.examples[0], truth=evil, prediction=evil)
    found = replace(classes, identity=replace(classes.identity, data=evil), examples=(example,))
    parsed = Page(compose_page(found, ()))
    assert parsed.all("script") == []
    assert "".join(parsed.text).count(evil) >= 3


def test_what_there_is_none_of_is_not_drawn(classes: Assessment, tmp_path: Path) -> None:
    """No selection where no row is wrong, no convergence where draws leave nothing to chance: a sentence says so."""
    right = replace(
        classes, selection=tuple(Curve(each.name, each.x, (0.0,) * len(each.x)) for each in classes.selection)
    )
    [selection] = [plate for plate in draw_plates(right) if plate.heading == "Keeping the surest rows"]
    assert selection.charts == ()
    assert selection.caption.startswith("No row is wrong")
    version, rows = line(tmp_path)
    few = Labelled(rows.inputs, rows.targets)
    found = evaluate(version, few, "x", resamples=20)
    plates = {plate.heading: plate for plate in draw_plates(found)}
    assert plates["How many draws suffice"].charts == ()
    assert "Two kinds of doubt" not in plates
    assert "Reliability" not in plates
    Page(compose_page(found, tuple(plates.values())))


def test_constant_noise_is_set_against_errors(shown_numbers: Shown) -> None:
    """Where one kind of doubt is the same everywhere, its axis would be a point."""
    scatter = shown_numbers.found.uncertainty
    assert scatter is not None
    flat = replace(scatter, aleatoric=(3.0,) * len(scatter.off))
    found = replace(shown_numbers.found, uncertainty=flat, shifts=(), coverage=(), pit={}, convergence=None)
    plate = draw_plates(found)[-1]
    assert "a deviation of 3.0000" in plate.caption
    [usual] = [each for each in shown_numbers.plates if each.heading == plate.heading]
    assert usual.charts != plate.charts


def luminance(colour: str) -> float:
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_can_be_told_from_the_paper(theme: Theme) -> None:
    """By the contrasts that WCAG 2.1 asks for: 4.5 of text, 3 of lines and marks."""
    assert contrast(theme.ink, theme.paper) > 7
    assert contrast(theme.muted, theme.paper) > 4.5
    for colour in (*theme.paths.values(), *theme.others, theme.wrong):
        assert contrast(colour, theme.paper) > 3


def test_text_of_either_page_can_be_read(classes: Assessment) -> None:
    """The style's own colours, light first and then dark: text against the paper and the shaded box."""
    text = compose_page(classes, ())
    colours = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})", block)) for block in re.findall(r":root \{(.*?)\}", text, re.S)
    ]
    assert len(colours) == 2
    for found in colours:
        whole = {name: value if len(value) == 7 else "#" + "".join(2 * each for each in value[1:])
                 for name, value in found.items()}  # fmt: skip
        for name in ("ink", "muted", "accent", "better", "worse"):
            for behind in ("paper", "shade"):
                assert contrast(whole[name], whole[behind]) > 4.5, (name, behind)
        assert whole["paper"] in (LIGHT.paper, DARK.paper)


def test_no_state_of_matplotlib_is_touched() -> None:
    """Charts are drawn without pyplot, whose figures and settings all of a process share."""
    program = (
        "import sys, matplotlib; import dubito_models.report.sheet as s; before = dict(matplotlib.rcParams); "
        "s.render(lambda axes, theme: axes.plot([1, 2]), s.LIGHT); same = dict(matplotlib.rcParams) == before; "
        "import matplotlib.pyplot as shared; sys.exit(not same or bool(shared.get_fignums()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_served_answers_are_those_that_are_shown(classes: Assessment) -> None:
    assert classes.served == DRAWN
    assert f"Of the path {DRAWN}, by mutual information" in compose_page(classes, ())
