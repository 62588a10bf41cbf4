"""A Ray cluster of three nodes on this machine, in a process of its own; orders come by stdin.

`workers` prints the process ids of those at work, `lose NODE` kills a node's processes at once,
`add` brings a new one. The cluster goes when stdin ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NODES = 3


class Nodes:
    """The cluster as a test sees it."""

    def __init__(self) -> None:
        environment = os.environ | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_worker_niceness": "0",  # 15 of its own accord: a busy machine would starve them
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.address = self._answer()

    def workers(self) -> list[int]:
        """Process ids of the actors of all nodes."""
        return self._ask("workers")  # type: ignore[no-any-return]

    def lose(self, node: int) -> None:
        """Kill all processes of a node; 0, the head, is not to be lost."""
        self._ask(f"lose {node}")

    def add(self) -> None:
        """Bring a new node."""
        self._ask("add")

    def stop(self) -> None:
        """Take everything down."""
        if self._process.stdin and self._process.stdout:
            self._process.stdin.close()
            self._process.wait(timeout=120)
            self._process.stdout.close()

    def _ask(self, order: str) -> Any:
        assert self._process.stdin
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the cluster ended"
        return json.loads(line)


def main() -> None:
    """Be that process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints goes elsewhere
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    del settings["include_dashboard"]
    nodes = [cluster.head_node, *(cluster.add_node(**settings) for _ in range(NODES - 1))]

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer(cluster.address)
    for line in sys.stdin:
        order, *words = line.split()
        if order == "workers":
            answer(_actors(os.getpid()))
        elif order == "lose":
            cluster.remove_node(nodes.pop(int(words[0])), allow_graceful=False)
            answer("lost")
        elif order == "add":
            nodes.append(cluster.add_node(**settings))
            answer("there")
    cluster.shutdown()


def _actors(top: int) -> list[int]:
    """Our workers among the processes below one."""
    found, waiting = [], [top]
    while waiting:
        pid = waiting.pop()
        try:
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Bench"):
                found.append(pid)
        except OSError:
            continue
    return sorted(found)


if __name__ == "__main__":
    main()
