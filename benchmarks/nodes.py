"""A Ray cluster of several nodes as processes on this machine, for faults that need one."""

from __future__ import annotations

from typing import Any, Self

import psutil

_OBJECT_STORE_BYTES = 80 * 2**20


class Nodes:
    """A head that works nothing and nodes of one core each; a context manager."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._nodes: list[Any] = []

    def __enter__(self) -> Self:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(self._number):
            self.add()
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> None:
        self._nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=_OBJECT_STORE_BYTES))

    def kill_one(self) -> None:
        """As a spot machine goes: no notice."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)

    def workers(self) -> list[psutil.Process]:
        """Processes of our actors, on all nodes."""
        found = []
        for node in self._nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            found += [p for p in raylet.children(recursive=True) if p.name().startswith("ray::_Act")]
        return found
