"""What differs between two runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdl.errors import InputError
from jaxdl.runs.catalog import Difference, differences, flat
from tests.run_folders import CONFIG, METRICS, write


def test_only_what_differs_is_listed_and_the_folders_do_not_count(tmp_path):
    a = write(tmp_path / "a", workdir="a")
    b = write(
        tmp_path / "b",
        metrics={**METRICS, "rmse": {**METRICS["rmse"], "test": 3.5}, "reason": "early-stopping"},
        workdir="b",
        seed=1,
        hidden=[100],
        dropout=0.5,
        commit="fedcba",
        versions={**CONFIG["versions"], "jax": "0.11.0"},
    )
    assert differences(a, b) == [
        Difference("config", "seed", 0, 1),
        Difference("config", "hidden", [10, 5], [100]),
        Difference("config", "versions.jax", "0.10.2", "0.11.0"),
        Difference("config", "commit", "0123456789abcdef", "fedcba"),
        Difference("config", "dropout", None, 0.5),
        Difference("metrics", "reason", "epochs", "early-stopping"),
        Difference("metrics", "rmse.test", 3.8, 3.5),
    ]
    mirrored = [(each.entry, each.b, each.a) for each in differences(b, a)]
    assert sorted(mirrored, key=str) == sorted(((e.entry, e.a, e.b) for e in differences(a, b)), key=str)


def test_a_run_differs_from_itself_in_nothing(tmp_path):
    a = write(tmp_path / "a")
    assert differences(a, a) == []


def test_a_run_that_has_not_ended_is_compared_by_its_best_epoch_so_far(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", metrics=None)
    found = {each.entry: (each.a, each.b) for each in differences(a, b)}
    assert found["reason"] == ("epochs", "unfinished") and found["rmse.test"] == (3.8, None)
    # Its best epoch is the one that the finished run had too.
    assert "rmse_best.validation" not in found and "epochs" not in found


def test_what_is_no_run_is_told(tmp_path):
    a = write(tmp_path / "a")
    with pytest.raises(InputError, match="must be the folder of a run"):
        differences(a, tmp_path / "b")
    (a / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        differences(a, a)


NESTED = st.recursive(
    st.none() | st.integers() | st.lists(st.integers()),
    lambda inner: st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
)


@given(st.dictionaries(st.text("abc", min_size=1), NESTED))
def test_flat_entries_are_found_by_their_path(entries):
    for name, value in flat(entries):
        found = entries
        for part in name.split("."):
            found = found[part]
        assert found == value and not isinstance(value, dict)


def test_what_follows_from_the_flags_is_not_told_again(tmp_path):
    a = write(tmp_path / "a")
    b = write(tmp_path / "b", inputs={"shape": [3]}, card={"limits": "Others."}, hidden=[3, 3])
    assert [each.entry for each in differences(a, b)] == ["hidden"]
