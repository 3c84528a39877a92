"""What the publishers of the data ask of those who use them, and of models that were trained on them."""

from __future__ import annotations

from typing import NamedTuple


class Terms(NamedTuple):
    """The origin of a data set, and what may be done with it."""

    data: str  # what it is, in a sentence
    licence: str
    cite: tuple[str, ...]  # the works to name


WEATHER = Terms(
    "Daily weather of places in Europe, 2000 to 2010: the weather prediction dataset, made from the European Climate "
    "Assessment & Dataset (ECA&D).",
    "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/): name the authors, and say what was changed. The model "
    "is made from the data, so name them where you share it.",
    (
        "Huber et al., Weather prediction dataset, Zenodo, https://doi.org/10.5281/zenodo.7525955 (light: "
        "https://doi.org/10.5281/zenodo.5071376; barbecue labels: https://doi.org/10.5281/zenodo.4980359)",
        "Klein Tank et al., Daily dataset of 20th-century surface air temperature and precipitation series for the "
        "European Climate Assessment, International Journal of Climatology 22, 1441-1453 (2002), https://www.ecad.eu",
    ),
)
CIFAR10 = Terms(
    "CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in ten classes.",
    "Published for research without a licence of its own; cite the report.",
    (
        "Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009), "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
)
SIMULATED = Terms(
    "Simulated by this project's own generator: nothing was measured or photographed.", "none needed.", ()
)


def terms_of(name: str, source: str) -> Terms:
    """The terms of the data set of a name, `weather` or `cifar10`, from a source such as "file:/home/me/weather.csv".

    >>> terms_of("weather", "simulated:3654:seed=0").licence, terms_of("weather", "zenodo:x").licence[:9]
    ('none needed.', 'CC BY 4.0')
    """
    if source.startswith("simulated"):
        return SIMULATED
    return WEATHER if name == "weather" else CIFAR10
