"""Jobs on a Ray cluster: an existing one, or one that is started here. Ray is optional (requirements-ray.txt).

Every node must see the repository and ROOT_DIR under the same paths (a shared file system) and have the same Python
environment. A job asks for a GPU (where the cluster has any), CPU cores and memory, so Ray runs as many at once as fit.
A job whose node or worker is lost is submitted again and resumes from its checkpoint; the object's lock
(sap3d/lock.py) keeps it from starting while remains of the lost attempt still work.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Sequence

from sap3d.batch.board import Board
from sap3d.batch.jobs import Attempt, Job
from sap3d.errors import InputError, first_line
from sap3d.scene import REPOSITORY

CONNECT_SECONDS = 20  # for the head of a cluster to answer
LOCK_WAIT_SECONDS = 120  # for what is left of a lost attempt to end


def run_ray(
    jobs: Sequence[Job], retries: int, board: Board, address: str | None = None, gpus: Sequence[str] | None = None, cpus: float = 1, memory_gb: float = 0.0, variables: dict | None = None
) -> None:
    """Run every job on the cluster at ``address`` ("auto": the one of this machine), or on a new one when it is None.

    ``gpus``: indices a new cluster may use, or ["cpu"] to use none; ``cpus`` and ``memory_gb``: what a job takes of its node.
    Raises InputError when Ray is missing, the cluster cannot be reached or has no node that is large enough.
    """
    ray = _import_ray()
    _connect(ray, address, gpus)
    try:
        resources = ray.cluster_resources()
        gpu = 1 if resources.get("GPU", 0) >= 1 and list(gpus or []) != ["cpu"] else 0
        _check_size(ray, cpus, gpu, memory_gb)
        options = {"num_cpus": cpus, "num_gpus": gpu, "max_retries": 0} | ({"memory": int(memory_gb * (1 << 30))} if memory_gb else {})
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker knows where the repository is once it runs
        remote = ray.remote(**options)(_attempt)
        board.say(f"Ray: {len(ray.nodes())} nodes, {resources.get('CPU', 0):.0f} CPU cores, {resources.get('GPU', 0):.0f} GPUs; a job takes {cpus:g} cores and {gpu} GPU; "
                  f"given out from node {ray.get_runtime_context().get_node_id()[:6]}")
        variables = {"SAP3D_LOCK_WAIT": str(LOCK_WAIT_SECONDS)} | (variables or {})

        def submit(job: Job):
            job.begin()
            return remote.remote(str(REPOSITORY), job.command, str(job.log), str(job.results), bool(gpu), variables)

        pending = {submit(job): job for job in jobs}
        announced: set[int] = set()
        try:
            while pending:
                ready, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
                for reference in ready:
                    job = pending.pop(reference)
                    again = job.finish(_result(ray, reference), retries)
                    board.ended(job, again)
                    announced.discard(id(job))
                    if again:
                        pending[submit(job)] = job
                running = [job for job in pending.values() if job.last_line()]
                for job in running:
                    if id(job) not in announced:
                        announced.add(id(job))
                        job.started = time.time()  # until here it has waited for a free node
                        board.started(job)
                board.draw(running)
        except (KeyboardInterrupt, BrokenPipeError):
            for reference in pending:
                ray.cancel(reference)
            ray.wait(list(pending), num_returns=len(pending), timeout=90)
            raise
    finally:
        board.clear()
        ray.shutdown()


def _attempt(repository: str, command: list[str], log: str, results: str, gpu: bool, variables: dict) -> Attempt:
    """What a worker does: one run of run_pipeline.sh on its node."""
    import ray

    sys.path.insert(0, repository)
    from sap3d.batch.jobs import run_attempt

    device = str(ray.get_gpu_ids()[0]) if gpu else "cpu"
    node = f"{ray.util.get_node_ip_address()} node {ray.get_runtime_context().get_node_id()[:6]}"
    return run_attempt(command, Path(log), Path(results), device, node, variables, bound=True)


def _result(ray, reference) -> Attempt:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return Attempt(2, first_line(error.cause), False, "")
    except ray.exceptions.RayError as error:  # the node or the worker is gone, or Ray has ended it for want of memory
        memory = isinstance(error, ray.exceptions.OutOfMemoryError)
        return Attempt(1, "ended by Ray for want of memory on its node" if memory else f"its node or worker was lost ({type(error).__name__})", False, "")


def _import_ray():
    try:
        import ray
    except ImportError:
        raise InputError(f"--engine ray needs Ray: run {sys.executable} -m pip install -r requirements-ray.txt") from None
    return ray


def _connect(ray, address: str | None, gpus: Sequence[str] | None) -> None:
    common = {"include_dashboard": False} if address is None else {}
    if address is None and gpus:
        common["num_gpus"] = 0 if list(gpus) == ["cpu"] else len(gpus)
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if address not in (None, "auto") and not (host and port.isdigit()):
        raise InputError(f"--address {address} is neither HOST:PORT of a Ray cluster's head nor auto")
    try:
        if host:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()  # Ray itself would ask for many minutes
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **common)
    except Exception as error:  # OSError, ValueError, RuntimeError, by version and cause
        raise InputError(f"--address {address}: no Ray cluster can be reached ({first_line(error)}); start one with 'ray start --head'") from None


def _check_size(ray, cpus: float, gpu: int, memory_gb: float) -> None:
    for node in ray.nodes():
        has = node["Resources"]
        if node["Alive"] and has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpu and has.get("memory", 0) >= memory_gb * (1 << 30):
            return
    raise InputError(f"no node of the Ray cluster has {cpus:g} CPU cores, {gpu} GPU and {memory_gb:g} GB of memory; lower --cpus or --memory_gb")
