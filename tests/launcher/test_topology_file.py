"""``--topology-file``: what may be in it, and one sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from server_process import run_launch

from launcher import topology_file
from launcher.topology_file import read_topology_file
from pdv_mp.config import ConfigError
from pdv_mp.topology import Topology, Worker

PREFILL = "{name: prefill, stages: [prefill]}"
DECODE = "{name: decode, stages: [verify, draft]}"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_of_ones_own(tmp_path: Path) -> None:
    text = """
    replicas: 2
    tokenizers: 3
    workers:
      - name: prefill
        stages: [prefill]
      - {name: decode2, stages: [draft, verify], threads: 3, max-batch: 8, device: cpu}
    """
    assert read_topology_file(write(tmp_path, text)) == Topology(
        "mine",
        (Worker("prefill", ("prefill",)), Worker("decode2", ("draft", "verify"), 3, 8, "cpu")),
        replicas=2,
        tokenizers=3,
    )


def test_the_example_of_the_documents_is_such_a_row(tmp_path: Path) -> None:
    assert topology_file.__doc__ is not None
    example = [line for line in topology_file.__doc__.splitlines() if line.startswith("    ")]
    row = read_topology_file(write(tmp_path, "\n".join(example)))
    assert [worker.name for worker in row.workers] == ["prefill", "decode"]
    assert row.tokenizers == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"workers: [{{name: prefill, stages: [prefill], max_batch: 2}}, {DECODE}]",
            "worker 'prefill' has max_batch; only the one that hosts 'verify' forms batches",
        ),
        (f"workers: [{PREFILL}, {{name: decode, stages: [verify]}}]", "no worker hosts 'draft'"),
        (f"workers: [{PREFILL}, {DECODE}, {{name: a, stages: [draft]}}]", "two workers host 'dra"),
        (f"workers: [{PREFILL}, {{name: a, stages: [verify, draft, draft]}}]", "two workers host"),
        (f"workers: [{PREFILL}, {PREFILL}, {DECODE}]", "two workers are named 'prefill'"),
        (
            "workers: [{name: a, stages: [prefill, draft]}, {name: b, stages: [verify]}]",
            "worker 'a' hosts prefill and draft; only the one that hosts 'verify' may host another",
        ),
        (
            "workers: [{name: a, stages: [prefil]}]",
            "'prefil' of worker 'a' is not a stage; use prefill, draft, verify; did you mean 'pre",
        ),
        ("workers: [{name: a, stages: [{}]}]", "{} of worker 'a' is not a stage"),
        ("workers: [{name: a, stages: prefill}]", "'stages' of worker 'a' must be a list of pref"),
        ("workers: [{name: a, stages: []}]", "'stages' of worker 'a' must be a list"),
        ("workers: [{name: a}]", "'stages' of worker 'a' must be a list"),
        (
            "workers: [{name: a, stages: [verify], device: tpu}]",
            "worker 'a': device 'tpu' is not a device; use auto, cpu or cuda:N",
        ),
        (
            "workers: [{name: a, stages: [verify], device: cuda:99}]",
            "worker 'a': device cuda:99: ",
        ),
        ("workers: [{name: a, stages: [verify], device: 3}]", "'3' is not a device"),
        (f"replicas: 0\nworkers: [{PREFILL}, {DECODE}]", "replicas is 0; it must be a whole numbe"),
        (f"replicas: 65\nworkers: [{PREFILL}, {DECODE}]", "a whole number from 1 to 64"),
        (f"tokenizers: -1\nworkers: [{PREFILL}, {DECODE}]", "tokenizers is -1; it must be a whole"),
        (f"tokenizers: 65\nworkers: [{PREFILL}, {DECODE}]", "a whole number from 0 to 64"),
        ("workers: [{name: tokenizer, stages: [verify]}]", "the name 'tokenizer', which other"),
        ("workers: [{name: engine, stages: [verify]}]", "the name 'engine', which other things"),
        (f"replicas: true\nworkers: [{PREFILL}, {DECODE}]", "replicas is True"),
        ("workers: [{name: a, stages: [verify], threads: 0}]", "threads of worker 'a' is 0; it mu"),
        (
            "workers: [{name: a, stages: [verify], max_batch: 1.5}]",
            "max_batch of worker 'a' is 1.5",
        ),
        ("workers: [{name: a, stages: [verify], batch: 1}]", "unknown key 'batch' of worker 'a'"),
        (
            "workers: [{name: a, stages: [verify], max_batch: 1, max-batch: 2}]",
            "'max_batch' of worker 'a' is given twice",
        ),
        ("replica: 1\nworkers: []", "unknown key 'replica'; did you mean 'replicas'?"),
        ("replicas: 1", "'workers' must be a list of at least one worker"),
        ("", "'workers' must be a list"),
        ("workers: []", "'workers' must be a list"),
        ("workers: {a: {stages: [verify]}}", "'workers' must be a list"),
        ("workers: [verify]", "worker 1 must be a map with 'name' and 'stages'"),
        ("workers: [{stages: [verify]}]", "worker 1 has the name None; a name is a small letter"),
        ("workers: [{name: A, stages: [verify]}]", "worker 1 has the name 'A'"),
        ("workers: [{name: a-0, stages: [verify]}]", "worker 1 has the name 'a-0'"),
        ("workers: [{name: 0a, stages: [verify]}]", "worker 1 has the name '0a'"),
        ("workers: [{name: ../a, stages: [verify]}]", "worker 1 has the name '../a'"),
        ('workers: [{name: "a\\n", stages: [verify]}]', "worker 1 has the name 'a\\n'"),
        (f"workers: [{{name: {'a' * 17}, stages: [verify]}}]", "then at most 15 small letters"),
        ("workers: 1\nworkers: 2", "is not plain YAML: 'workers' is given twice in line 2"),
        ("workers: [{name: a, name: b}]", "is not plain YAML: 'name' is given twice in line 1"),
        ("- workers", "must be a map of workers and replicas"),
        ("workers: [", "is not plain YAML"),
        ("workers: !!python/object:os.system {}", "is not plain YAML"),
    ],
)
def test_an_impossible_table_is_refused_in_one_sentence(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_topology_file(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("--topology-file ")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there() -> None:
    done = run_launch("--topology-file", "/nowhere/x.yaml")
    assert (done.code, done.stdout) == (2, "")
    (message,) = done.messages
    assert message == "cannot read --topology-file /nowhere/x.yaml: No such file or directory"


def test_a_mistake_ends_the_launch_with_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path, f"workers: [{PREFILL}]")
    done = run_launch("--topology-file", str(path))
    assert (done.code, done.stdout) == (2, "")
    (message,) = done.messages
    assert message == f"--topology-file {path}: no worker hosts 'draft'"


def test_a_name_and_a_file_exclude_each_other(tmp_path: Path) -> None:
    path = write(tmp_path, f"workers: [{PREFILL}, {DECODE}]")
    done = run_launch("--topology-file", str(path), environment={"PDV_TOPOLOGY": "unified"})
    assert done.code == 2
    (message,) = done.messages
    assert message == f"--topology unified and --topology-file {path} exclude each other"


def test_workers_on_two_devices_are_refused(tmp_path: Path) -> None:
    on_cpu = "{name: decode, stages: [verify, draft], device: cpu}"
    path = write(tmp_path, f"workers: [{PREFILL}, {on_cpu}]")
    done = run_launch("--topology-file", str(path), "--port", "0")
    assert done.code == 2
    (message,) = done.messages
    assert message.startswith("topology 'mine' has workers on auto and cpu; they share weights")


def test_the_printed_configuration_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, f"workers: [{PREFILL}, {DECODE}]")
    done = run_launch("--topology-file", str(path), "--print-config")
    assert done.code == 0, done.stderr
    values = yaml.safe_load(done.stdout)
    assert (values["topology"], values["topology_file"]) == (None, str(path))
    again = tmp_path / "again.yaml"
    again.write_text(done.stdout)
    drawn = run_launch("--config", str(again), "--describe-topology")
    assert drawn.code == 0, drawn.stderr
    assert drawn.stdout.startswith("mine: 1 replica of 2 workers, 4 processes and the launcher\n")
