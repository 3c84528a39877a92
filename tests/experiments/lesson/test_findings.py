"""What is said of the lesson's rows: each claim by the tests of scipy, and none where there is no difference."""

import re

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from experiments.lesson.exercises import BARBECUE, EXERCISES, NEXT, SIZES
from experiments.lesson.findings import READING, SPLIT, findings, recommended
from experiments.lesson.rows import Row

CIFAR10 = "CIFAR-10"
NETWORKS = ("plain", "early stopping", "BatchNorm", "one place", "all years")


def network(name, values, section=EXERCISES, unit="hours", parameters=9):
    figure = "accuracy" if unit == "%" else "RMSE"
    values = np.asarray(values, np.float64)
    sets = {"validation": values, "test": values}
    return Row(section, name, "", figure, unit, parameters, tuple(range(len(values))), sets)


def baseline(name, value, section=EXERCISES, unit="hours"):
    figure = "accuracy" if unit == "%" else "RMSE"
    return Row(section, name, "", figure, unit, None, (), {"test": np.array([value])})


def holm(p_values):
    """Step by step, as Holm (1979) words it: the smallest of those that are left, times their number."""
    left, lowest, result = dict(enumerate(p_values)), 0.0, {}
    while left:
        smallest = min(left, key=left.get)
        lowest = max(lowest, min(1.0, len(left) * left.pop(smallest)))
        result[smallest] = lowest
    return [result[place] for place in range(len(p_values))]


def chance_in(sentence):
    if "p < 0.001" in sentence:
        return 0.0005
    return float(re.search(r"p = ([\d.e-]+?)\)", sentence).group(1))


def about(output, *names):
    """The one sentence that names these rows and no other."""
    (sentence,) = [text for text in output[2:] if set(re.findall('"([^"]+)"', text)) == set(names)]
    return sentence


def assert_says(sentence, one, other, p_value, better=None):
    if p_value < 0.05:
        assert sentence.startswith(f'"{better}" is better than "{other if better == one else one}" by '), sentence
    else:
        assert f'seeds show no difference between "{one}" and "{other}" (' in sentence, sentence
    if p_value < 0.001:
        assert "p < 0.001" in sentence
    else:
        assert chance_in(sentence) == pytest.approx(p_value, rel=0.06)


@pytest.mark.parametrize("seed", range(6))
def test_p_values_are_those_of_scipy_and_of_holm_within_their_section(seed):
    rng = np.random.default_rng(seed)
    drawn = {name: rng.normal(3.5 + 0.06 * place, 0.1, 6) for place, name in enumerate(NETWORKS)}
    steps = {name: rng.normal(3.62, 0.1, 6) for name in ("month", "3 days", "deeper")}
    today = 3.7
    rows = [
        *(network(name, values) for name, values in drawn.items()),
        baseline("as today", today),
        *(network(name, values, NEXT) for name, values in steps.items()),
    ]
    output = findings(rows)
    assert output[:2] == [READING, SPLIT] and len(output) == 2 + 4 + 3
    pairs = [("plain", "as today"), ("early stopping", "plain")]
    pairs += [("BatchNorm", "early stopping"), ("BatchNorm", "as today")]
    tested = [
        ttest_1samp(drawn[one], today) if other == "as today" else ttest_rel(drawn[one], drawn[other])
        for one, other in pairs
    ]
    for (one, other), chance, test in zip(pairs, holm([t.pvalue for t in tested]), tested, strict=True):
        assert_says(about(output, one, other), one, other, chance, one if test.statistic < 0 else other)
    tested = {name: ttest_rel(values, drawn["BatchNorm"]) for name, values in steps.items()}
    for (name, test), chance in zip(tested.items(), holm([t.pvalue for t in tested.values()]), strict=True):
        better = name if test.statistic < 0 else "BatchNorm"
        assert_says(about(output, name, "BatchNorm"), name, "BatchNorm", chance, better)


def test_more_rows_in_one_section_change_no_sentence_of_another():
    rng = np.random.default_rng(0)
    few = [network(name, rng.normal(3.5, 0.1, 5)) for name in NETWORKS[:3]]
    more = [network(name, rng.normal(3.5, 0.1, 5), NEXT) for name in ("month", "3 days", "deeper")]
    assert findings([*few, *more])[: len(findings(few))] == findings(few)


def test_equal_networks_are_rarely_called_different():
    rng = np.random.default_rng(0)
    times, lied = 1500, 0
    for _ in range(times):
        rows = [network(name, rng.normal(3.5, 0.1, 5)) for name in NETWORKS]
        rows += [baseline("as today", 3.5), baseline("ridge regression", 3.5)]
        rows += [
            baseline(f"{name}, {place}", 3.5) for name in ("as today", "ridge regression") for place in NETWORKS[3:]
        ]
        output = findings(rows)
        assert len(output) == 2 + 9
        lied += any("is better than" in text for text in output)
    # In a section there is a false claim or more in at most one lesson of twenty, and Holm gives little away.
    assert 0.01 < lied / times < 0.05 + 3 * np.sqrt(0.05 * 0.95 / times)


@pytest.mark.parametrize("count", [3, 16])
def test_of_equal_sizes_none_is_rarely_called_worse_although_the_best_is_chosen_by_the_same_figures(count):
    rng = np.random.default_rng(1)
    times, lied = 1200, 0
    for _ in range(times):
        rows = [network(str(size), rng.normal(3.2, 0.1, count), SIZES) for size in range(7)]
        lied += any(text.startswith("Worse than") for text in findings(rows))
    assert lied / times < 0.05 + 3 * np.sqrt(0.05 * 0.95 / times)


def test_clear_differences_are_told():
    rng = np.random.default_rng(0)
    rows = [network(name, rng.normal(3 + place, 0.05, 5)) for place, name in enumerate(NETWORKS[:3])]
    output = findings(rows)[2:]
    assert [text.partition(" by ")[0] for text in output] == [
        '"plain" is better than "early stopping"',
        '"early stopping" is better than "BatchNorm"',
    ]


def test_a_baseline_is_a_constant_without_an_error():
    values = [3.4, 3.6, 3.5, 3.45]
    output = findings([network("BatchNorm", values), baseline("as today", 3.877)])
    test = ttest_1samp(values, 3.877)
    assert chance_in(output[2]) == pytest.approx(test.pvalue, rel=0.05)
    assert output[2].startswith('"BatchNorm" is better than "as today" by 0.39 +- 0.04 hours')


@pytest.mark.parametrize(
    ("center", "better"), [(90.0, "one place, yes or no"), (70.0, "as today, one place, yes or no")]
)
def test_of_percents_the_higher_is_better(center, better):
    rows = [
        network("one place, yes or no", center + np.array([0.1, -0.1, 0.2, 0.0]), BARBECUE, "%"),
        baseline("as today, one place, yes or no", 80.0, BARBECUE, "%"),
    ]
    (sentence,) = findings(rows)[2:]
    assert sentence.startswith(f'"{better}" is better than') and " points (" in sentence


def test_every_rate_of_dropout_is_compared_with_none():
    rates = {"pooled": 50.0, "dropout 0.2": 53.0, "dropout 0.95": 20.0}
    rows = [network(name, value + np.array([0.1, 0.3, 0.2]), CIFAR10, "%") for name, value in rates.items()]
    rows[1] = rows[1]._replace(values={"test": np.array([53.0, 53.1, 53.3])})
    rows[2] = rows[2]._replace(values={"test": np.array([20.0, 20.5, 20.1])})
    output = findings(rows)
    assert about(output, "dropout 0.2", "pooled").startswith('"dropout 0.2" is better than "pooled"')
    assert about(output, "dropout 0.95", "pooled").startswith('"pooled" is better than "dropout 0.95"')


def test_the_small_network_for_photographs_is_not_the_small_one_for_weather():
    rows = [
        network("small", [3.2, 3.3, 3.1, 3.25]),
        network("dense", [38.0, 39.0, 38.5], CIFAR10, "%"),
        network("small", [47.0, 48.2, 47.1], CIFAR10, "%"),
    ]
    (sentence,) = findings(rows)[2:]
    assert sentence.startswith('"small" is better than "dense" by 8.9')


# How small a network may be


def of_sizes(means, spread=0.1, count=8, **changes):
    """Sizes whose figures have just these means, and a standard error of spread / sqrt(count)."""
    rng = np.random.default_rng(0)
    rows = []
    for name, mean in means.items():
        noise = rng.standard_normal(count)
        values = mean + spread * (noise - noise.mean()) / noise.std(ddof=1)
        rows.append(network(name, values, SIZES, parameters=int(name) * 100))
    return [row._replace(**changes) for row in rows]


def test_the_smallest_network_within_one_standard_error_of_the_best():
    # The error is 0.1 / sqrt(8), 0.035.
    rows = of_sizes({"9": 3.5, "7": 3.2, "5": 3.1, "3": 3.13, "2": 3.136, "1": 4.0})
    output = findings(rows)[2:]
    assert output[0] == (
        'Of 6 sizes of network, "5" has the lowest mean RMSE on validation rows, 3.10 +- 0.04 hours. The smallest '
        'within one standard error of it is "3", with 300 parameters.'
    )
    assert recommended(rows) == 3
    assert recommended(list(reversed(rows))) == 2


def test_sizes_are_worse_or_not_told_apart_by_scipy_over_all_pairs():
    rows = of_sizes({"9": 3.5, "7": 3.2, "5": 3.1, "3": 3.13, "1": 4.0})
    names, values = [row.name for row in rows], [row.values["validation"] for row in rows]
    pairs = [(one, other) for one in range(5) for other in range(one)]
    chances = dict(zip(pairs, holm([ttest_rel(values[a], values[b]).pvalue for a, b in pairs]), strict=True))
    best = names.index("5")
    worse = [names[place] for place in (0, 1, 3, 4) if chances[max(place, best), min(place, best)] < 0.05]
    alike = [name for name in names if name not in (*worse, "5")]
    assert "9" in worse and "3" in alike
    assert findings(rows)[3:] == [
        f'{text} "5" on validation rows: {", ".join(f"{chr(34)}{name}{chr(34)}" for name in listed)}.'
        for text, listed in (("Worse than", worse), ("No significant difference from", alike))
    ]


def test_a_size_with_a_seed_that_diverged_is_said_to_be_so_and_neither_best_nor_worse():
    rows = of_sizes({"9": 3.5, "5": 3.1, "3": 2.0})
    rows[2].values["validation"][3] = np.nan
    output = findings(rows)[2:]
    assert output[0] == 'Sizes that cannot be compared, because a seed diverged: "3".'
    assert output[1].startswith('Of 2 sizes of network, "5" has the lowest mean') and "\n" not in "".join(output)
    assert output[2] == 'Worse than "5" on validation rows: "9".' and len(output) == 3
    assert recommended(rows) == 1


def test_where_all_sizes_diverged_nothing_else_is_said():
    rows = of_sizes({"9": np.nan, "5": np.inf})
    assert findings(rows)[2:] == ['Sizes that cannot be compared, because a seed diverged: "9", "5".']
    assert recommended(rows) is None


def test_a_network_with_a_seed_that_diverged_is_compared_with_nothing():
    rows = [network("plain", [4.0, np.inf, 4.1]), network("early stopping", [3.5, 3.6, 3.4]), baseline("as today", 9.0)]
    output = findings(rows)
    for other in ("as today", "early stopping"):
        assert "cannot be compared: not all of the 3 seeds have finite values" in about(output, "plain", other)


def test_one_seed_allows_to_say_nothing():
    rows = [network(name, [3.5]) for name in NETWORKS] + [baseline("as today", 9.0)]
    rows += [network(str(size), [3.0 + size], SIZES) for size in (1, 2)]
    assert findings(rows) == [] and recommended(rows[-2:]) is None


def test_without_rows_nothing_is_said():
    assert (
        findings([]) == []
        and findings([baseline("as today", 3.9), network("plain", [3.0, 3.1])._replace(name="x")]) == []
    )
