"""The page for those who come from Keras: both columns run, and give what the page says that they give."""

import inspect

import jax
import numpy as np
import optax
import pytest
from sklearn.metrics import root_mean_squared_error

from tests.documents import ROOT, blocks
from tests.quick import quick_programs

pytestmark = pytest.mark.slow

keras = pytest.importorskip("keras", reason="Keras, which this page is about, is not installed")

PAGE = ROOT / "docs" / "keras.md"
CALLS = {
    *("`summary`", "`compile`", "`fit`", "`evaluate`", "`predict`"),
    *("`EarlyStopping`", "`ModelCheckpoint`", "`TensorBoard`", "`save`"),
}


class WithoutTensorFlow(keras.callbacks.TensorBoard):
    """Keras's callback, made and checked by Keras; it writes with TensorFlow, which is not needed here."""

    def __getattribute__(self, name):
        if name.startswith("on_") or name in ("set_model", "_push_writer"):
            return lambda *_, **__: None
        return super().__getattribute__(name)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_programs():
        yield


@pytest.fixture(scope="module", autouse=True)
def loose_ranks():
    with jax.numpy_rank_promotion("allow"):  # which Keras's own layers need
        yield


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    """The names that each column leaves."""
    names = {"Keras": {}, "jaxdl": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("keras"))
        patch.setattr(keras.callbacks, "TensorBoard", WithoutTensorFlow)
        keras.utils.set_random_seed(0)
        for block in blocks(PAGE, "python"):
            for column in [block.title] if block.title else names:
                exec(block.code, names[column])
    return names


def test_every_call_of_the_lesson_has_both_columns():
    sections = {part.partition("\n")[0]: part for part in PAGE.read_text().split("\n## ")}
    assert set(sections) >= CALLS
    for call in CALLS:
        assert sections[call].count('title="Keras"') == sections[call].count('title="jaxdl"') == 1


def test_both_columns_have_the_same_rows(columns):
    theirs, ours = columns["Keras"], columns["jaxdl"]
    for inputs, targets, rows in (("x_train", "y_train", "train"), ("x_val", "y_val", "validation")):
        np.testing.assert_array_equal(theirs[inputs], ours[rows].inputs)
        np.testing.assert_array_equal(theirs[targets], ours[rows].targets)
    assert ours["test"].targets.shape == (105, 1)


def test_both_networks_have_the_parameters_that_the_page_tells(columns):
    assert columns["Keras"]["network"].count_params() == columns["jaxdl"]["table"].parameters == 14457
    assert PAGE.read_text().count("# 14457") == 2


def test_both_histories_hold_the_epochs_that_were_asked_for(columns):
    assert len(columns["Keras"]["history"].history["val_loss"]) == 5
    assert len(columns["jaxdl"]["run"].history["val_loss"]) == 2  # of the last call, which saves


def test_what_was_saved_predicts_what_the_network_predicted(columns):
    theirs, ours = columns["Keras"], columns["jaxdl"]
    before, after = (theirs[name].predict(theirs["x_test"], verbose=0) for name in ("network", "again"))
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(
        ours["again"], ours["jaxdl"].predict(ours["model"], ours["run"].best, ours["test"].inputs)
    )


def test_a_metric_of_keras_depends_on_the_batch_size_and_ours_is_that_of_the_rows(columns):
    theirs, ours = columns["Keras"], columns["jaxdl"]
    assert abs(theirs["by_batch"][0] - theirs["by_batch"][1]) > 0.1
    predicted = ours["jaxdl"].predict(ours["model"], ours["run"].final, ours["test"].inputs)
    expected = root_mean_squared_error(ours["test"].targets, predicted)
    assert ours["by_batch"] == pytest.approx([expected, expected], rel=1e-5)


def test_what_the_page_says_of_defaults_is_so():
    assert inspect.signature(keras.optimizers.Adam).parameters["epsilon"].default == 1e-7
    assert inspect.signature(optax.adam).parameters["eps"].default == 1e-8
    stopping = inspect.signature(keras.callbacks.EarlyStopping).parameters
    assert stopping["restore_best_weights"].default is False and stopping["mode"].default == "auto"
    norm = inspect.signature(keras.layers.BatchNormalization).parameters
    assert (norm["momentum"].default, norm["epsilon"].default) == (0.99, 1e-3)
    with pytest.raises(ModuleNotFoundError, match="tensorflow"):
        keras.callbacks.TensorBoard("logs").summary  # noqa: B018
