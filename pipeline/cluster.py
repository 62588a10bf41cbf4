"""Parts made by workers of a Ray cluster. The only code that touches ray.

The driver hands a part to whoever is free, never more than two to one worker, so that what is on
its way stays bounded, and keeps each part as it comes back: killed, it goes on where it was.
Workers that see the folder of parts write theirs themselves. A worker that is lost gives its parts
back, and another is started in its place.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pipeline import machine, telemetry
from pipeline.errors import PipelineError, one_line
from pipeline.executor import Item, Made, need_listener
from pipeline.parts import Parts
from pipeline.report import SILENT, Reporter
from pipeline.worker import TOKEN, Bench, keep, need_alike

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pipeline.executor import Executor, Maker

IN_HAND = 2  # parts of one worker: the one it makes, and the next
MOST_LOSSES = 5  # workers lost over one part, or in one place, before these are suspected
PATIENCE = 600.0  # seconds without any worker
BEAT = 1.0  # seconds between two looks at signals and at the clock
SILENCE = 10.0  # seconds, after which it is said what is waited for
STORE = 1 << 31  # bytes of the object store of a cluster that is started here, at most


class Done(NamedTuple):
    """A finished part."""

    item: Item
    path: Path
    facts: dict[str, Any]
    seconds: float  # on the worker


@dataclass
class _Worker:
    number: int
    actor: Any
    opening: Any  # the reference that answers when it is ready; None once it has
    said: Mapping[str, Any] = field(default_factory=dict)
    hand: list[Any] = field(default_factory=list)  # references to parts, oldest first
    parts: int = 0
    size: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"worker {self.number} on {self.said.get('node', 'an unknown node')}"


class Crew:
    """Workers with one maker; used as a context, at whose end they go.

    Args:
        cpus: processors of one worker.
        gpus: of one worker.
        unit: of `Item.size`, in the plural.

    Raises:
        PipelineError: no ray, no cluster, no room, or a worker that is not like the others.
    """

    def __init__(
        self,
        executor: Executor,
        maker: Maker,
        parts: Parts,
        *,
        cpus: int,
        gpus: int = 0,
        unit: str = "topics",
        reporter: Reporter = SILENT,
    ) -> None:
        self._maker, self._parts, self._reporter = maker, parts, reporter
        self._unit = unit
        self._needs = {"num_cpus": cpus, "num_gpus": gpus}
        self._token = secrets.token_hex(16)
        self._ray = _ray()
        self._workers: list[_Worker] = []
        self._started = 0
        self._lost = 0
        self._stillborn = 0  # lost one after another before they could begin
        self._slowest: tuple[float, str, str] = (0.0, "", "")
        self.facts: Mapping[str, Any] = {}
        self._connect(executor)
        try:
            parts.keep_note(TOKEN, {"token": self._token})
            for _ in range(self._room(executor)):
                self._hire()
            self._open_first()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let all workers go."""
        for worker in self._workers:
            with suppress(Exception):
                self._ray.kill(worker.actor)
        self._workers.clear()
        self._ray.shutdown()

    # ------------------------------------------------------------ before the work

    def _connect(self, executor: Executor) -> None:
        address = executor.address or os.environ.get("RAY_ADDRESS") or None
        need_listener(address)
        quiet = {"log_to_driver": False, "configure_logging": False}
        # Ray puts its own handler in the place of ours.
        in_main = threading.current_thread() is threading.main_thread()
        handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            if address is not None:
                self._ray.init(address=address, **quiet)
            else:
                # Ray's workers are "nice": on a busy machine they would get what others leave.
                os.environ.setdefault("RAY_worker_niceness", "0")
                store = min(STORE, machine.memory()[1] // 8)
                self._ray.init(
                    address="local", num_cpus=machine.cpus(), include_dashboard=False,
                    object_store_memory=max(store, 100 << 20), **quiet,
                )  # fmt: skip
        except Exception as error:
            where = "no Ray could be started here" if address is None else f"Ray at {address}"
            raise PipelineError(
                f"{where}: {type(error).__name__}: {_first(error)}",
                "check the address, and that all nodes have the same versions of Python and ray",
            ) from error
        finally:
            if in_main:
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def _room(self, executor: Executor) -> int:
        """Count the workers that there is room for."""
        rooms = 0
        for node in self._ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                shares = [
                    int(has.get(name, 0) // needed)
                    for name, needed in (("CPU", self._needs["num_cpus"]),
                                         ("GPU", self._needs["num_gpus"]))
                    if needed
                ]  # fmt: skip
                rooms += min(shares)
        wished = executor.workers or rooms
        if not 1 <= wished <= rooms:
            needs = f"{self._needs['num_cpus']} CPUs and {self._needs['num_gpus']} GPUs"
            raise PipelineError(
                f"the cluster has room for {rooms} workers with {needs} each, not for "
                f"{wished or 'any'}",
                "choose fewer --workers or --threads, or add nodes",
            )
        return wished

    def _hire(self) -> None:
        kind = self._ray.remote(**self._needs)(Bench)
        actor = kind.remote(self._maker, str(self._parts.folder.absolute()), self._token)
        self._started += 1
        self._workers.append(_Worker(self._started, actor, actor.open.remote()))

    def _open_first(self) -> None:
        """Wait until one worker is there; the others may come while it is at work."""
        began, said = time.monotonic(), False
        while not self._ready():
            opening = {worker.opening: worker for worker in self._workers}
            for ref in self._ray.wait(list(opening), num_returns=1, timeout=BEAT)[0]:
                self._opened(opening[ref])
            if time.monotonic() - began > SILENCE and not said:
                said = True
                self._reporter.notice("waiting for the cluster to start the first worker")

    def _take_on(self, worker: _Worker, said: Mapping[str, Any]) -> None:
        """Take a worker that is like the others."""
        worker.said = said
        if "error" in said:
            message, hint = said["error"]
            raise PipelineError(f"{worker.name}: {message}", hint)
        others = [one for one in self._workers if one.said and one is not worker]
        need_alike(said, others[0].said if others else None, worker.name)
        worker.opening = None
        self._stillborn = 0
        self.facts = said["facts"]

    # ------------------------------------------------------------ the work

    def make(self, items: Iterable[Item]) -> Iterator[Done]:
        """Yield parts as they are finished, in any order; items are taken as workers are free.

        Raises:
            PipelineError: what a worker's maker raised; a part that ends its workers; no worker.
        """
        source, again = iter(items), deque[Item]()
        at_work: dict[Any, tuple[_Worker, Item]] = {}
        losses: dict[str, int] = {}
        alive_at = time.monotonic()
        exhausted = False
        while True:
            for worker in sorted(self._ready(), key=lambda one: len(one.hand)):
                while len(worker.hand) < IN_HAND and (again or not exhausted):
                    item = again.popleft() if again else next(source, None)
                    if item is None:
                        exhausted = True
                        break
                    ref = worker.actor.make.remote(item.key, item.what)
                    worker.hand.append(ref)
                    at_work[ref] = worker, item
            if not at_work and exhausted and not again:
                return
            if self._ready():
                alive_at = time.monotonic()
            elif time.monotonic() - alive_at > PATIENCE:
                raise PipelineError(
                    "no worker is left, and the cluster has had no room for another for "
                    f"{PATIENCE:.0f} s",
                    "bring its nodes back and run the same command again; finished parts are kept",
                )
            opening = {one.opening: one for one in self._workers if one.opening is not None}
            done, _ = self._ray.wait([*at_work, *opening], num_returns=1, timeout=BEAT)
            for ref in done:
                if ref in opening:
                    self._opened(opening[ref])
                elif (found := self._finish(ref, at_work, again, losses)) is not None:
                    yield found

    def _ready(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.opening is None]

    def _opened(self, worker: _Worker) -> None:
        """Let a worker begin, or look for another where it was lost before it could."""
        try:
            said = self._ray.get(worker.opening)
        except self._ray.exceptions.RayError as error:
            lost = isinstance(error, self._ray.exceptions.RayActorError)
            if not lost or "creation task" in str(error):
                raise PipelineError(
                    f"{worker.name} did not start: {_first(error)}",
                    "install the same trec-pipeline, ray and Python on every node",
                ) from error
            self._stillborn += 1
            if not self._ready() and self._stillborn >= MOST_LOSSES * len(self._workers):
                raise PipelineError(
                    f"{self._stillborn} workers one after another were lost at their start",
                    "look for a lack of memory on their nodes: fewer workers, a smaller model",
                ) from None
            self._replace(worker)
            return
        self._take_on(worker, said)

    def _finish(
        self, ref: Any, at_work: dict[Any, Any], again: deque[Item], losses: dict[str, int]
    ) -> Done | None:
        worker, item = at_work.pop(ref)
        first = worker in self._workers and worker.hand[:1] == [ref]
        if ref in worker.hand:
            worker.hand.remove(ref)
        try:
            name, facts, note, seconds = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, PipelineError):
                raise cause from error
            raise PipelineError(
                f"{worker.name}, part {item.label}: {type(cause or error).__name__}: "
                f"{_first(cause or error)}",
                "run the same command again; finished parts are kept",
            ) from error
        except self._ray.exceptions.RayError:
            if (lying := self._lying(item)) is not None:
                self._replace(worker)
                return lying
            again.append(item)
            if first:
                losses[item.key] = losses.get(item.key, 0) + 1
            if losses.get(item.key, 0) >= MOST_LOSSES:
                raise PipelineError(
                    f"part {item.label} ended {MOST_LOSSES} workers one after another",
                    "look for a lack of memory on their nodes: fewer workers, a smaller model",
                ) from None
            self._replace(worker)
            return None
        if isinstance(name, str):
            path = self._parts.arrived(item.key, name)
        else:
            path = keep(self._parts, item.key, Made(name, facts, note))
        worker.parts += 1
        worker.size += item.size
        worker.seconds += seconds
        self._slowest = max(self._slowest, (seconds, item.label, worker.name))
        return Done(item, path, facts, seconds)

    def _lying(self, item: Item) -> Done | None:
        """Find a part that a worker finished and did not live to tell of."""
        if item.note is None:
            return None
        parts = Parts(self._parts.folder)
        path = parts.find(item.key)
        if path is None:
            return None
        # They were kept before the part: where there is no note, there were no facts.
        facts = (parts.note(item.note) or {}) if item.note else {}
        return Done(item, self._parts.arrived(item.key, path.name), facts, 0.0)

    def _replace(self, worker: _Worker) -> None:
        """Start another in the place of one who is gone."""
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        self._lost += 1
        self._reporter.notice(f"{worker.name} was lost; its parts go to others")
        with suppress(Exception):
            self._ray.kill(worker.actor)
        self._hire()

    # ------------------------------------------------------------ after the work

    def summary(self) -> dict[str, Any]:
        """What each worker did, which part took longest, how many workers were lost."""
        seconds, label, worker = self._slowest
        workers = [
            {
                "worker": one.name,
                "parts": one.parts,
                self._unit: one.size,
                "per_second": round(one.size / max(one.seconds, 1e-9), 1),
            }
            for one in self._workers
        ]
        slowest = {"part": label, "seconds": round(seconds, 3), "worker": worker}
        shared = all(one.said.get("shared") for one in self._ready())
        return {
            "kind": "ray", "shared_folder": shared, "workers": workers, "lost": self._lost,
            "slowest": slowest,
        }  # fmt: skip

    def say(self) -> None:
        """Tell the user the rates and the slowest part."""
        rates = [one.size / one.seconds for one in self._workers if one.seconds]
        if not rates:
            return
        seconds, label, worker = self._slowest
        self._reporter.notice(
            f"{len(rates)} workers: {min(rates):,.0f} to {max(rates):,.0f} {self._unit}/s each; "
            f"slowest part: {label}, {seconds:.1f} s, {worker}"
        )


def _first(error: BaseException) -> str:
    """The line of a long message that says what happened."""
    lines: Sequence[str] = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if lines else type(error).__name__)[:300]


def _ray() -> Any:
    telemetry.switch_off()
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise PipelineError(
            "--executor ray: ray is not installed", "pip install 'trec-pipeline[ray]'"
        ) from error
    logging.getLogger("ray").setLevel(logging.ERROR)  # its import sets another
    return ray
