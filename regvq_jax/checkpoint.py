"""Checkpoints: saved in the background, whole or not at all; restored on any number of devices."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from regvq_jax.errors import UserError
from regvq_jax.files import report_write_errors

PyTree = Any


class Checkpoints:
    """The checkpoints of one training run: DIRECTORY/STEP/, the newest and the best ones kept.

    A step directory appears under its name only when it is complete, so a kill during a save
    leaves the previous checkpoint the latest. Of several processes, each must make every call.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        best_metric: str | None = None,
        best_mode: str = "min",
        keep_latest: int = 1,
        keep_best: int = 1,
        read_only: bool = False,
    ):
        """Opens a directory of checkpoints, and makes it unless `read_only`.

        Args:
            directory: local or remote path.
            best_metric: key of `save`'s metrics that says what is best; None keeps the newest only.
            best_mode: "min" or "max".
            keep_latest: number of newest checkpoints to keep.
            keep_best: number of best checkpoints to keep besides.
            read_only: for readers beside a training run; such an object must not save.
        """
        if best_mode not in ("min", "max"):
            raise ValueError(f"best_mode is {best_mode!r}, not 'min' or 'max'")
        # Orbax accepts a relative path and then fails in its background thread.
        self.directory = epath.Path(directory).resolve()
        self._best_metric = best_metric
        self._sign = 1.0 if best_mode == "max" else -1.0
        policies = ocp.checkpoint_managers
        preserved = [policies.LatestN(keep_latest)]
        if best_metric is not None:
            preserved.append(policies.BestN(get_metric_fn=self._quality, n=keep_best))
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            best_fn=None if best_metric is None else self._quality,
            best_mode="max",
            preservation_policy=policies.AnyPreservationPolicy(preserved),
            # In the background, a failed mkdir leaves threads that hold up the exit for minutes.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        )
        with report_write_errors(self.directory):
            self._manager = _Manager(
                self.directory,
                options=options,
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )

    def save(
        self,
        step: int,
        state: PyTree,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Starts to save; returns as soon as `state` may be donated to the next step.

        Args:
            step: finished steps.
            state: pytree of arrays.
            meta: JSON of what is no array: data position, seconds so far.
            metrics: numbers of this step, `best_metric` among them if it was evaluated.

        Returns:
            False if there is a checkpoint of this step already; it is left as it is.

        Raises:
            UserError: this save or the one before it failed: no space, no permission.
        """
        json.dumps(meta)  # A TypeError here is worth more than one in the background thread.
        self.wait()
        if step in self._manager.all_steps():
            return False
        with self._report_save_errors():
            return self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(dict(meta))),
                metrics={name: float(value) for name, value in (metrics or {}).items()},
                force=True,  # whatever the step, also one below the latest
            )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint (waits for one that is on its way), or None."""
        self.wait()
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the best `best_metric`, or None where no checkpoint has a finite one."""
        if self._best_metric is None:
            raise ValueError("best_step() needs best_metric")
        self.wait()
        step = self._manager.best_step()
        if step is None or self._quality(self._manager.metrics(step) or {}) == -math.inf:
            return None
        return step

    def restore(self, abstract_state: PyTree, *, step: int | None = None) -> tuple[PyTree, dict]:
        """The whole state, on the devices of `abstract_state`, however many it was saved from.

        Args:
            abstract_state: pytree of jax.ShapeDtypeStruct with a sharding; without one, a leaf
                comes as a numpy array.
            step: the latest by default.

        Returns:
            (state, meta).

        Raises:
            UserError: there is no checkpoint, or it does not fit `abstract_state`, or is damaged.
        """
        step = self._existing(step)
        self._check_fits(step, abstract_state, whole=True)
        restored = self._restore(
            step,
            state=ocp.args.PyTreeRestore(
                abstract_state,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_state),
            ),
            meta=ocp.args.JsonRestore(),
        )
        return restored["state"], restored["meta"]

    def restore_params(
        self,
        abstract_tree: PyTree,
        *,
        key: str | tuple[str, ...] = "ema",
        step: int | None = None,
    ) -> PyTree:
        """One sub-tree of the saved state, and nothing else is read.

        Args:
            abstract_tree: pytree as in `restore`; it may leave out parts of the sub-tree, and
                arrays are cast to its dtypes.
            key: where the sub-tree lies in the state, e.g. "ema" or ("params", "tokenizer").
            step: the latest by default.

        Raises:
            UserError: there is no checkpoint, or it does not fit `abstract_tree`, or is damaged.
        """
        step = self._existing(step)
        names = (key,) if isinstance(key, str) else key
        target = abstract_tree
        for name in reversed(names):
            target = {name: target}
        self._check_fits(step, target, whole=False)
        restored = self._restore(
            step,
            state=ocp.args.PyTreeRestore(
                target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )["state"]
        for name in names:
            restored = restored[name]
        return restored

    def wait(self) -> None:
        """Blocks until the running save is complete.

        Raises:
            UserError: it failed: no space, no permission.
        """
        with self._report_save_errors(background=True):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the running save and frees the threads.

        Raises:
            UserError: the running save failed.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _quality(self, metrics: Mapping[str, float]) -> float:
        """Larger is better; -inf for what was not evaluated or is not finite."""
        value = self._sign * float(metrics.get(self._best_metric, math.nan))
        return value if math.isfinite(value) else -math.inf

    @contextlib.contextmanager
    def _report_save_errors(self, background: bool = False) -> Iterator[None]:
        # Tensorstore, which writes the arrays in the background, reports a full disk as ValueError.
        kinds = (OSError, ValueError) if background else OSError
        try:
            yield
        except kinds as error:
            # In memory the manager has already dropped the steps that this one was to replace.
            if self.directory.is_dir():
                self._manager.reload()
            steps = self._manager.all_steps()
            good = f"step {max(steps)} is intact" if steps else "there is no earlier checkpoint"
            raise UserError(
                f"Saving a checkpoint into {self.directory} failed: {_cause(error)}; {good}. Free "
                "some space or restore the permission, and run the same command again."
            ) from error

    def _existing(self, step: int | None) -> int:
        self.wait()
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(
                f"There is no checkpoint in {self.directory}; train this stage first, or name the "
                "directory of a run that has one."
            )
        if step is None:
            return max(steps)
        if step not in steps:
            raise UserError(
                f"There is no checkpoint of step {step} in {self.directory}; there is "
                f"{', '.join(str(existing) for existing in sorted(steps))}."
            )
        return step

    def _check_fits(self, step: int, target: PyTree, *, whole: bool) -> None:
        """Raises UserError for the first leaf of `target` that the checkpoint cannot fill."""
        with self._report_damage(step):
            saved = _leaves_by_path(self._manager.item_metadata(step)["state"].tree)
        wanted = _leaves_by_path(target)
        where = f"the checkpoint {self.directory / str(step)}"
        advice = "Use the config of the run that wrote it, or a new workdir."
        for path, leaf in wanted.items():
            if path not in saved:
                raise UserError(f"{path} {_describe(leaf)} is not in {where}. {advice}")
            same_dtype = np.dtype(saved[path].dtype) == np.dtype(leaf.dtype)
            if tuple(saved[path].shape) != tuple(leaf.shape) or (whole and not same_dtype):
                raise UserError(
                    f"{path} is {_describe(saved[path])} in {where} but {_describe(leaf)} in the "
                    f"model. {advice}"
                )
        unused = [path for path in saved if path not in wanted]
        if whole and unused:
            raise UserError(
                f"{where} holds {unused[0]} {_describe(saved[unused[0]])}, which is not in the "
                f"model. {advice}"
            )

    def _restore(self, step: int, **items) -> dict[str, Any]:
        with self._report_damage(step):
            return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())

    @contextlib.contextmanager
    def _report_damage(self, step: int) -> Iterator[None]:
        # The tree is checked before it is read, so what still fails is in the files: gone, cut off
        # or garbled, which Orbax reports as any of these.
        try:
            yield
        except (OSError, ValueError, KeyError) as error:
            others = [other for other in self._manager.all_steps() if other != step]
            advice = f" to go back to step {max(others)}" if others else " and start again"
            raise UserError(
                f"The checkpoint {self.directory / str(step)} cannot be read: {_cause(error)}. "
                f"Restore that directory from a copy, or delete it{advice}."
            ) from error


class _Manager(ocp.CheckpointManager):
    """Orbax's, which leaves the question whether to end to the training loop."""

    def reached_preemption(self, step: int) -> bool:
        """False: Orbax would ask with another number than the loop, and from its background thread.

        jax's service ends all processes at a number that none has passed; a number that went back lets
        it choose one that some have, and these go on without the others.
        """
        return False


def _leaves_by_path(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _cause(error: Exception) -> str:
    """The part of a message that helps: tensorstore puts it last, after all the paths."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0].split(" [os_error_code=")[0].rsplit(": ", 1)[-1]
