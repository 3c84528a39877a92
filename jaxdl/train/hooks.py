"""The hooks of callbacks: when the loop calls them, how they end a run, and the state that they keep."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxdl._checks import as_callback, given_as, is_context_manager
from jaxdl.errors import InputError
from jaxdl.types import Callback, CallbackLike, RunState, Stop


class RunningMetrics(Mapping[str, Any]):
    """Loss and metrics of the training steps of an epoch so far, computed when the first one is read."""

    def __init__(self, compute: Callable[[], Mapping[str, Any]] = dict) -> None:
        """Remember the function that computes the metrics."""
        self._compute = compute

    @cached_property
    def _values(self) -> Mapping[str, Any]:
        return self._compute()

    def __getitem__(self, name: str) -> Any:
        """Return a metric by name."""
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        """Return the names."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return the number of metrics."""
        return len(self._values)

    def __repr__(self) -> str:
        """Return the metrics as those of a dictionary."""
        return repr(dict(self._values))


class Chunk(NamedTuple):
    """The result of one call: some batches of an epoch, or all."""

    state: RunState
    record: dict[str, Any] | None  # of the epoch that the chunk ended: a float for each value, of many runs an array
    finite: bool  # whether the variables, and the losses of the unfinished epoch, are finite
    batches: int  # 0 where `steps` asked for none, on this process or on another
    should_stop: bool = False  # whether the stopping rule has ended the run; of many runs, all
    # Training steps of the run so far; of many runs, the most. Without `end_after` and `max_steps` it is not read but
    # computed, as if earlier epochs had had this batch size.
    step: int = 0
    metrics: RunningMetrics = RunningMetrics()  # of the training steps of the current epoch, or of the one that ended


@dataclass
class LoopResult:
    """The state and the records of a run, also after an exception has ended its loop."""

    state: Any
    history: list[dict[str, Any]]
    should_stop: bool = False  # as on the device, which need not be asked
    reason: str = ""  # why something other than the epochs and the stopping rule has ended the loop
    callback_states: dict[str, Any] = field(default_factory=dict)  # by the names of the callbacks


def at_intervals(hook: Callable[[Any, Any], Any], seconds: float) -> Callback:
    """Return the callback that calls `hook(state, history)` after every epoch, and every `seconds` within one."""
    records: Any = []

    def on_train_begin(run_state: Any, history: Any) -> None:
        nonlocal records
        records = history  # the run appends to it

    def on_steps(run_state: Any, metrics: Any) -> Any:
        return hook(run_state, records)

    return Callback(on_train_begin, on_steps, hook, every_seconds=seconds)


class Hooks:
    """The open callbacks of a run."""

    def __init__(self, callbacks: Sequence[Callback], result: LoopResult) -> None:
        """Begin to count steps and seconds from now."""
        self.callbacks, self.result = callbacks, result
        self.timed = [each for each in callbacks if each.on_steps is not None]
        # Steps of training for whose multiples a call of the device has to end.
        self.every_steps = tuple({each.every_steps for each in self.timed if each.every_steps is not None})
        self._times = [time.monotonic()] * len(self.timed)  # of the last calls of `on_steps`
        self._step: int | None = None  # of the chunk before

    def seconds(self, most: float) -> float:
        """Return the seconds that a call of the device may take, at most `most`, for every `every_seconds`."""
        return min([most, *(each.every_seconds for each in self.timed if each.every_seconds is not None)])

    def call(self, chunk: Chunk) -> None:
        """Call the hooks that are due after a chunk; the first reason to stop becomes that of the result."""
        for index, callback in enumerate(self.timed):
            if self._is_due(index, chunk):
                self._times[index] = time.monotonic()
                self.stop(callback.on_steps, chunk.metrics)
        self._step = chunk.step
        if chunk.record is not None:
            for callback in self.callbacks:
                self.stop(callback.on_epoch_end, self.result.history)

    def stop(self, hook: Callable[[Any, Any], Any] | None, second: Any) -> None:
        """Call a hook, if there is one, with the state of the result; a `Stop` gives the result its reason.

        Raises InputError for what a hook returns in place of a `Stop`: a bool, a text, or a Stop without a reason.
        """
        answer = None if hook is None else hook(self.result.state, second)
        reason = answer.reason if isinstance(answer, Stop) else ""
        is_stop = isinstance(answer, Stop) and isinstance(reason, str) and reason != ""
        if not is_stop and (answer is Stop or isinstance(answer, (Stop, bool, np.bool_, str))):
            raise InputError(
                f'a callback must return None, or Stop("reason") to end the run, got {given_as(answer)}. Use '
                'return Stop("diverged") if condition else None, for example.'
            )
        self.result.reason = self.result.reason or reason

    def states(self) -> dict[str, Any]:
        """Return a copy of the state of each callback that has one, by name. Raises InputError without a JSON form."""
        return states_of(self.callbacks)

    def _is_due(self, index: int, chunk: Chunk) -> bool:
        callback = self.timed[index]
        if callback.every_seconds is not None and time.monotonic() - self._times[index] >= callback.every_seconds:
            return True
        # No step was trained where the chunk has only validated.
        has_trained = chunk.batches > 0 and chunk.step != self._step
        return callback.every_steps is not None and has_trained and chunk.step % callback.every_steps == 0


@contextmanager
def open_hooks(
    callbacks: Sequence[CallbackLike],
    result: LoopResult,
    states: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Hooks]:
    """Call `on_train_begin` of all callbacks, and `on_train_end` in reverse order when the block ends, however it ends.

    A callback that is a context manager is entered before, and left after all others have ended.

    result: of the loop; its `reason` is set where a hook stops the run. states: of the callbacks of an earlier run, by
    name.
    """
    with ExitStack() as stack:
        opened = [_enter(each, stack) for each in callbacks]
        _check_order(callbacks, opened)
        for callback in opened:
            if callback.load_state_dict is not None and callback.name in states:
                callback.load_state_dict(_copy(callback.name, states[callback.name]))
        hooks = Hooks(opened, result)
        # Before the first step: a state without a form in JSON must not cost a whole run.
        result.callback_states = hooks.states()
        for callback in opened:
            hooks.stop(callback.on_train_begin, result.history)
            if callback.on_train_end is not None:
                stack.callback(partial(_end, callback.on_train_end, result))
        try:
            yield hooks
        finally:
            result.callback_states = hooks.states()


def states_of(callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Return a copy of the state of each callback that has one, by name. Raises InputError without a form in JSON."""
    return {each.name: _copy(each.name, each.state_dict()) for each in callbacks if each.state_dict is not None}


def _end(hook: Callable[[Any, Any], Any], result: LoopResult) -> None:
    hook(result.state, result.history)


def _enter(callback: CallbackLike, stack: ExitStack) -> Callback:
    if not is_context_manager(callback):
        return as_callback(callback)
    manager: Any = callback
    try:
        return as_callback(stack.enter_context(manager))
    except AttributeError as error:
        # A generator's context manager drops its arguments when it is entered.
        if not hasattr(manager, "gen") or hasattr(manager, "args"):
            raise
        raise InputError(
            "callbacks hold a context manager that was entered before. Make a new one for each run, as in "
            "callbacks=[csv_log(path)], or give what `with ... as callback:` yields."
        ) from error


def _check_order(callbacks: Sequence[CallbackLike], opened: Sequence[Callback]) -> None:
    """Raise InputError where two states have one name, or a callback saves the state of one that is called later."""
    names = [each.name for each in opened if each.state_dict is not None]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f'callbacks hold two with a state and name="{name}". Give each a name of its own.')
    for index, callback in enumerate(opened):
        for other in callback.after:
            if not any(other is each for each in (*callbacks[:index], *opened[:index])):
                raise InputError(
                    f'callbacks: one saves the state of "{other.name}", which must stand before it in the list. Use '
                    f"callbacks=[{other.name}, checkpointer], for example."
                )


def _copy(name: str, state: Any) -> Any:
    """Return a copy of a state, as JSON would give it back."""
    try:
        return json.loads(json.dumps(state))
    except (TypeError, ValueError) as error:
        raise InputError(
            f'state_dict of the callback "{name}" must return numbers, strings, and lists and dicts of these, got: '
            f"{error}. Use float(value) and array.tolist()."
        ) from error
