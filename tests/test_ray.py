"""Batches on a real Ray cluster of several node processes on this machine, one of which is killed in the middle.

    python -m pytest tests/test_ray.py -m slow -s        (needs requirements-ray.txt; prints the run's table)
"""

import re
import shutil
import subprocess
import sys
import time

import pytest

from sap3d.scene import REPOSITORY, Scene
from tests.tiny_scene import ALL_SETTINGS, TYPE, environment, make_tiny_object

pytestmark = pytest.mark.slow
OBJECTS = ("a", "b", "c", "d")
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture
def cluster():
    pytest.importorskip("ray", reason="Ray is optional: requirements-ray.txt")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_a_node_is_killed_in_the_middle(cluster, tmp_path):
    nodes = [cluster.add_node(**NODE) for _ in range(3)]
    first = make_tiny_object(tmp_path).train_dir
    for name in OBJECTS:
        shutil.copytree(first, first.with_name(name))
    log = {name: tmp_path / "results" / TYPE / name / "1" / "pipeline.log" for name in OBJECTS}
    settings = [*ALL_SETTINGS, "booth.nvs_steps=1", "recon.sds=false"]
    command = [sys.executable, str(REPOSITORY / "run_pipeline.py"), "--object_type", TYPE, "--objects", *OBJECTS, "--views", "1", "--engine", "ray", "--address", cluster.address, "--retries", "2", "--set", *settings]
    process = subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first_line = process.stdout.readline()
    own = re.search(r"given out from node (\w+)", first_line).group(1)  # with that one the batch itself would end
    killed = victim = None
    while killed is None and process.poll() is None:  # in the middle of an object: its second stage has begun
        time.sleep(0.2)
        for name in OBJECTS:
            text = log[name].read_text() if log[name].is_file() else ""
            found = re.match(r"--- .* on .* node (\w+), CPU", text)
            if found and found.group(1) != own and "== stage 2" in text and "== evaluation" not in text:
                victim = name
                killed = next(node for node in nodes if node.node_id.startswith(found.group(1)))
                cluster.remove_node(killed, allow_graceful=False)  # SIGKILL
                break
    output, errors = process.communicate()
    print(output + errors)
    assert process.returncode == 0 and killed is not None, output + errors
    for name in OBJECTS:
        assert re.search(rf"^{name} +1 +done ", output, re.M)
        text = log[name].read_text()
        assert text.count("\nresults ") == 1  # the last line of a whole run: once
        assert (Scene(TYPE, name, 1, tmp_path).results_dir / "results.json").is_file()
    attempts = int(re.search(rf"^{victim} +1 +done +(\d+)", output, re.M).group(1))
    assert attempts >= 2 and "node or worker was lost" in output and len(re.findall(r"^--- ", log[victim].read_text(), re.M)) == attempts
    assert list((tmp_path / "results").glob("*.lock")) == []


def test_no_cluster_there(tmp_path):
    pytest.importorskip("ray")
    for address, message in (("127.0.0.1:1", "127.0.0.1:1: no Ray cluster can be reached"), ("there", "there is neither HOST:PORT")):
        command = [sys.executable, str(REPOSITORY / "run_pipeline.py"), "--object_type", "GSO_demo", "--engine", "ray", "--address", address]
        done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
        assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(f"error: --address {message}")
