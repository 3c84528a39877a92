"""Train a step of every network of keras.applications through `jaxdl.from_keras`, and print a table.

    python -m benchmarks.studies.keras_applications [--only MobileNetV2 VGG16 ...] [--limit SECONDS]

Every network runs in a process of its own, with random weights, two images of the least size that it takes, and the
last third of its layers frozen, except for the classifier. Columns: the parameters; whether the step has changed every
trained array and the loss is finite; the trained layers of BatchNormalization; the largest difference of their moments
from those of Keras's own call with the same draws, in standard deviations of the channel; the same for Keras's own call
with inputs that differ in the last digit (two images make deep moments sensitive); whether every frozen array is
unchanged to the bit.
"""

import argparse
import json
import os
import subprocess
import sys
import time

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # one step of each: compilation is all of the time

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax

from jaxdl import from_keras, losses, to_keras
from jaxdl.data import dataset
from jaxdl.train import make_train_state, make_train_step

# The least sizes that the constructors take, where it is not 32.
SIZES = {"Xception": 71, "InceptionV3": 75, "InceptionResNetV2": 75}
NAMES = [name for name in dir(keras.applications) if name[0].isupper()]
IMAGES, CLASSES = 2, 3


def draw_with_numpy() -> None:
    """Let initializers draw with NumPy: JAX would compile a function for every shape."""
    random = np.random.default_rng(0)

    def uniform(_: object, shape: tuple[int, ...], dtype: str | None = None) -> jax.Array:
        limit = np.sqrt(6 / (np.prod(shape[:-1]) + shape[-1]))
        return jnp.asarray(random.uniform(-limit, limit, shape).astype(np.float32))

    for kind in (keras.initializers.VarianceScaling, keras.initializers.TruncatedNormal):
        kind.__call__ = uniform


def measure(name: str) -> dict[str, object]:
    """Return the row of a network."""
    draw_with_numpy()
    began, size = time.perf_counter(), SIZES.get(name, 32)
    make = getattr(keras.applications, name)
    network = make(weights=None, input_shape=(size, size, 3), classes=CLASSES, classifier_activation=None)
    # Behind the trained ones: frozen moments of untrained layers, 0 and 1, normalize nothing, and activations explode.
    for layer in network.layers[2 * len(network.layers) // 3 : -1]:
        layer.trainable = False
    model, key = from_keras(network), jax.random.key(0)
    images = np.random.default_rng(1).uniform(0, 255, (IMAGES, size, size, 3)).astype(np.float32)
    # A dark one and a bright one: moments of images that differ in noise alone would be those of rounding errors.
    images *= np.linspace(0.1, 1, IMAGES, dtype=np.float32)[:, None, None, None]
    batch, optimizer = dataset(images, np.arange(IMAGES, dtype=np.int32)), optax.sgd(1e-2)
    state = make_train_state(model.init(key, images), optimizer, key)
    step = jax.jit(make_train_step(model, losses.softmax_cross_entropy, optimizer))
    after, sums = jax.block_until_ready(step(state, batch))

    def changes(before: object, after: object) -> list[bool]:
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        return [not np.array_equal(*pair) for pair in pairs]

    # Keras's own call, with the same states of the random layers; then for inputs that differ by rounding.
    weights, others, seeds = {id(variable) for variable in network.weights}, [], 0
    for variable in network.non_trainable_variables:
        value = variable.value
        if id(variable) not in weights:
            value = jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, 0), seeds), (2,), jnp.uint32)
            seeds += 1
        others.append(value)
    call = jax.jit(lambda *values: network.stateless_call(*values, training=True)[1])
    trainable = [variable.value for variable in network.trainable_variables]
    theirs, perturbed = (call(trainable, others, inputs) for inputs in (images, images * np.float32(1 + 1e-7)))
    to_keras(network, after.variables)
    ours = [variable.value for variable in network.non_trainable_variables]
    places = {id(variable): place for place, variable in enumerate(network.non_trainable_variables)}
    moving = [
        (layer.momentum, places[id(layer.moving_mean)], places[id(layer.moving_variance)])
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]

    def difference(values: list[jax.Array]) -> float:
        """Return the largest difference of a batch's moments from Keras's, in standard deviations of the channel."""
        worst = 0.0
        for momentum, mean, variance in moving:
            moments = [np.asarray(values[place] - theirs[place]) / (1 - momentum) for place in (mean, variance)]
            expected = np.asarray(theirs[variance] - momentum * others[variance]) / (1 - momentum) + 1e-3
            scaled = np.abs(moments[0]) / np.sqrt(expected), np.abs(moments[1]) / expected
            worst = max(worst, *(float(part.max()) for part in scaled))
        return worst

    still = {place for _, *pair in moving for place in pair}
    frozen = [
        np.array_equal(ours[place], others[place])
        for variable, place in ((variable, places[id(variable)]) for variable in network.non_trainable_variables)
        if id(variable) in weights and place not in still
    ]
    trained = changes(state.variables.params, after.variables.params)
    return {
        "name": name,
        "pixels": size,
        "parameters": network.count_params(),
        "trained": f"{sum(trained)} of {len(trained)}",
        "finite": bool(np.isfinite(sums.totals["loss"])),
        "norms": len(moving),
        "difference": difference(ours),
        "perturbed": difference(perturbed),
        "frozen": f"{sum(frozen)} of {len(frozen)}",
        "seconds": round(time.perf_counter() - began),
    }


def main() -> None:
    """Measure every network in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--limit", type=int, default=600, help="seconds of a network")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    print(
        "| network | pixels | parameters | trained arrays changed, loss | norms | difference | of rounding | ", end=""
    )
    print("frozen arrays unchanged | s |\n|---|---|---|---|---|---|---|---|---|")
    for name in options.only:
        command = [sys.executable, "-m", "benchmarks.studies.keras_applications", "--one", name]
        try:
            output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=options.limit).stdout
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            reason = f"more than {options.limit} s"
            if isinstance(error, subprocess.CalledProcessError):
                reason = error.stderr.strip().splitlines()[-1] if error.stderr else f"exit status {error.returncode}"
            print(f"| {name} | {reason} ||||||||", flush=True)
            continue
        row = json.loads(output.splitlines()[-1])
        cells = f"{row['trained']}, {'finite' if row['finite'] else 'not finite'} | {row['norms']}"
        difference = f"{row['difference']:.1e} | {row['perturbed']:.1e}" if row["norms"] else "|"
        print(
            f"| {name} | {row['pixels']} | {row['parameters']:,} | {cells} | {difference} | {row['frozen']} | "
            f"{row['seconds']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
