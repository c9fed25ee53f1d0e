"""Train in several processes on a Ray cluster with Ray Train; events arrive in this process."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import uuid
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit.errors import ClusterError, LorakitError, MissingFileError, TrainingError
from lorakit.libraries.ray_cluster import Machine, import_ray, ray_cluster, require_resources
from lorakit.recipes.recipe import Recipe
from lorakit.training.callbacks import EventHandler
from lorakit.training.run import TrainResult
from lorakit.training.stop_request import StopRequest

_POLL_S = 0.2
_SETTINGS = {"RAY_TRAIN_V2_ENABLED": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}


def train_on_ray(
    recipe: Recipe | str | Path,
    workers: int,
    *,
    address: str | None = None,
    resume: bool = False,
    on_event: EventHandler | None = None,
    stop: StopRequest | None = None,
) -> TrainResult:
    """Train an adapter in several processes on a Ray cluster.

    Each process has one GPU if the cluster has GPUs and the recipe does not set
    `training.use_cpu`, otherwise one CPU; each has a batch of `per_device_train_batch_size`.

    Args:
        recipe: A recipe, or the path of its YAML file. All machines must share its paths,
            including `output`.
        workers: Number of processes.
        address: "host:port" of a cluster this machine belongs to, or "auto"; None starts Ray here.
        resume: Resume the run in `recipe.output`, as `train` does.
        on_event: As for `train`; called in this process.
        stop: As for `train`; set in this process.

    Raises:
        ConfigError: Ray is not installed.
        ClusterError: The cluster cannot be reached, or has too few resources.
        LorakitError: Error of `train` in a worker.
        TrainingError: A worker ended without an error message.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    _refuse_client(address)
    import_ray()
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    with ray_cluster(address) as machines:
        gpus = _gpus_each(recipe, machines)
        what = f"--ray {workers}"
        require_resources(machines, cpus=1, gpus=gpus, what=what, count=workers)
        storage = _storage_beside(recipe.output)
        try:
            return _RayTraining(recipe, workers, gpus, resume, storage).run(on_event, stop)
        finally:
            shutil.rmtree(storage, ignore_errors=True)


def _refuse_client(address: str | None) -> None:
    if address is not None and address.startswith("ray://"):
        raise ClusterError(
            f"--address: got '{address}', expected host:port, because training is controlled from "
            "a machine of the cluster. Log in to one of its machines, and use --address auto there."
        )


def _gpus_each(recipe: Recipe, machines: list[Machine]) -> int:
    on_cpu = bool(recipe.training.get("use_cpu"))
    return int(not on_cpu and any(machine.gpus >= 1 for machine in machines))


def _storage_beside(output: str) -> Path:
    """Return a directory for the files of Ray Train: shared by all machines, beside the run."""
    path = Path(output).absolute()
    return path.parent / f".{path.name}.ray-{uuid.uuid4().hex[:8]}"


@dataclass
class _RayTraining:
    """One call of Ray Train, which runs in a thread while the main thread forwards events."""

    recipe: Recipe
    workers: int
    gpus_each: int
    resume: bool
    storage: Path
    failure: list[BaseException] = field(default_factory=list)

    def run(self, on_event: EventHandler | None, stop: StopRequest | None) -> TrainResult:
        from ray.util.queue import Queue

        queue, stop_queue = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))
        thread = threading.Thread(target=self._fit, args=(queue, stop_queue), daemon=True)
        thread.start()
        try:
            with ExitStack() as until_the_end:
                return self._follow(thread, queue, stop_queue, on_event, stop, until_the_end)
        finally:
            queue.shutdown()
            stop_queue.shutdown()

    def _follow(
        self,
        thread: threading.Thread,
        queue: Any,
        stop_queue: Any,
        on_event: EventHandler | None,
        stop: StopRequest | None,
        until_the_end: ExitStack,
    ) -> TrainResult:
        """Forward events to the caller and a stop request to the workers, until they end."""
        from ray.util.queue import Empty

        is_stop_sent = False
        result: TrainResult | None = None
        error: Exception | None = None
        # This is the main thread, so Ctrl-C ends this loop, then Ray and its workers.
        while thread.is_alive() or not queue.empty():
            if stop is not None and stop.number and not is_stop_sent:
                stop_queue.put(stop.number)
                is_stop_sent = True
            try:
                name, payload = queue.get(timeout=_POLL_S)
            except Empty:
                continue
            if name == _FAILED:
                error = error or payload
                continue
            result = payload["result"] if name == "finished" else result
            if name == "run_opened" and stop is not None:
                until_the_end.enter_context(stop.observing())
            if on_event is not None:
                on_event(name, payload)
        if self.failure or result is None:
            raise error or self._training_error()
        return result

    def _fit(self, queue: Any, stop_queue: Any) -> None:
        from ray.train import LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        resources = {"CPU": 1, "GPU": self.gpus_each} if self.gpus_each else {"CPU": 1}
        timeout_s = self.recipe.training.get("ddp_timeout")
        timeout = {} if timeout_s is None else {"timeout_s": timeout_s}
        try:
            TorchTrainer(
                _train_in_worker,
                train_loop_config={
                    "recipe": self.recipe.model_dump(mode="json"),
                    "resume": self.resume,
                    "folder": str(Path.cwd()),
                    "queue": queue,
                    "asked": stop_queue,
                },
                torch_config=TorchConfig(**timeout),
                scaling_config=ScalingConfig(
                    num_workers=self.workers,
                    use_gpu=bool(self.gpus_each),
                    resources_per_worker=resources,
                ),
                run_config=RunConfig(
                    name="train",
                    storage_path=str(self.storage),
                    logging_config=LoggingConfig(log_level="ERROR"),
                ),
            ).fit()
        except BaseException as failure:
            self.failure.append(failure)

    def _training_error(self) -> LorakitError:
        failure = self.failure[0] if self.failure else None
        text = str(failure)
        if "storage" in text and "FileNotFound" in text + type(failure).__name__:
            return MissingFileError(
                f"A machine of the cluster has no {self.storage.parent}: expected an output on a "
                "file system that all machines share, such as NFS. Set another `output`."
            )
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return TrainingError(
            f"Training on Ray ended early: {lines[-1] if lines else repr(failure)}. Ray's "
            "logs on the machine of the worker have details; resume from the last complete "
            "checkpoint with --resume."
        )


_FAILED = "failed"


def _train_in_worker(config: dict[str, Any]) -> None:
    """Train in one worker; the main one sends its events, and the first to fail sends its error."""
    from lorakit.distributed.processes import should_report_error
    from lorakit.training.run import train

    queue = config["queue"]

    def emit(name: str, payload: dict[str, Any]) -> None:
        queue.put((name, payload))

    try:
        _change_directory(Path(config["folder"]))
        recipe = Recipe.check(config["recipe"], "the recipe")
        stop = _stop_request_from(config["asked"], recipe.training.get("ddp_timeout"))
        train(recipe, resume=config["resume"], on_event=emit, stop=stop)
    except Exception as error:
        if should_report_error(error):
            queue.put((_FAILED, error if isinstance(error, LorakitError) else _picklable(error)))
        raise


def _stop_request_from(stop_queue: Any, timeout_s: int | None) -> StopRequest:
    """Return a request that is set when the controlling process sends a stop signal."""
    from ray.exceptions import RayError

    from lorakit.distributed.processes import init_process_groups, is_main_process

    stop = StopRequest()

    def wait() -> None:
        with suppress(RayError):  # the queue ends with training
            stop.set(stop_queue.get())

    init_process_groups(timeout_s=timeout_s)
    if is_main_process():  # the main process forwards it to the others
        threading.Thread(target=wait, daemon=True).start()
    return stop


def _picklable(error: Exception) -> Exception:
    """Return an error of any library as one that every process can unpickle."""
    return TrainingError(
        f"A worker on {socket.gethostname()} failed: {type(error).__name__}: {error}"
    )


def _change_directory(folder: Path) -> None:
    """Change to the directory of the command, so that relative paths are the same."""
    if not folder.is_dir():
        raise MissingFileError(
            f"The machine {socket.gethostname()} has no directory {folder}, in which the command "
            "was started: expected one that all machines share. Start in such a directory."
        )
    os.chdir(folder)
