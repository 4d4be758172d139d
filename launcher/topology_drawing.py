"""``--describe-topology``: the processes, stages, sockets and pools of a row, as text."""

from __future__ import annotations

from pdv_mp.topology_rows import FRONT, POOLS, Topology, Worker

LAUNCHER = "launcher"


def draw(row: Topology) -> str:
    """The drawing of a prepared row: a tree of its processes, its pools, and its sockets."""
    workers, replicas = len(row.workers), row.replicas
    count = f"{_number(replicas, 'replica')} of {_number(workers, 'worker')}"
    title = f"{row.name}: {count}, {_number(len(row.process_names), 'process', 'processes')}"
    return "\n".join([f"{title} and the launcher", "", *_tree(row), "", *_sockets(row), ""])


def _number(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _tree(row: Topology) -> list[str]:
    tokenizes = "" if row.tokenizers else "tokenizes, "
    lines = [
        ("clients", ""),
        (f"└─ client, tcp ── {FRONT}", f"{tokenizes}detokenizes, keeps what is open"),
    ]
    lines += [(f"   ├─ {name}.N ── {name}", "tokenizes") for name in row.tokenizer_names]
    for replica, name in enumerate(row.scheduler_names):
        last = replica == row.replicas - 1
        branch, stem = ("└─", "  ") if last else ("├─", "│ ")
        edge = f"   {branch} engine-{replica}.N ── "
        lines.append((f"{edge}{name}", _worker(row.scheduler)))
        lanes = [worker for worker in row.workers if not worker.schedules]
        for lane in lanes:
            turn = "└─" if lane is lanes[-1] else "├─"
            lane_name = f"{lane.name}-{replica}"
            lines.append((f"   {stem} {turn} {lane_name}.N ── {lane_name}", _worker(lane)))
    if row.has_pools:
        lines += [("", ""), (POOLS, f"weights of both models, block tables, {_kv(row)}")]
        lines.append((f"└─ {POOLS} ── every worker", "maps what it needs and computes there"))
    else:
        lines += [("", ""), ("", f"weights and KV of both models belong to {row.worker_names[0]}")]
    width = max(len(left) for left, _ in lines) + 3
    return [f"{left:<{width}}{right}".rstrip() for left, right in lines]


def _kv(row: Topology) -> str:
    return "KV" if row.replicas == 1 else f"KV in {row.replicas} disjoint parts"


def _worker(worker: Worker) -> str:
    """``verify, then draft, then prefill; scheduler; 2 threads; batch 1``."""
    parts = [", then ".join(worker.stages)]
    if worker.schedules:
        parts.append("scheduler")
    if worker.threads is not None:
        parts.append(_number(worker.threads, "thread"))
    if worker.max_batch is not None:
        parts.append(f"batch at most {worker.max_batch}")
    if worker.device is not None:
        parts.append(worker.device)
    return "; ".join(parts)


def _sockets(row: Topology) -> list[str]:
    """A table of the endpoints: type, who binds, who connects, what they carry."""
    table = [("socket", "type", "bound by", "connected by", "carries")]
    table.append(("client, tcp", "ROUTER – DEALER", FRONT, "clients", "the client protocol"))
    for name in row.tokenizer_names:
        table.append((f"{name}.N", "PAIR", FRONT, name, "texts; ids"))
    for replica, name in enumerate(row.scheduler_names):
        edge = (f"engine-{replica}.N", "PAIR", FRONT, name, "open, close; tokens")
        table.append(edge)
        for other in row.names_in(replica):
            if other != name:
                table.append((f"{other}.N", "PAIR", name, other, "orders; results"))
    if row.has_pools:
        carried = "where weights and KV are"
        table.append((POOLS, "ROUTER – DEALER", POOLS, "every worker", carried))
    carried = "ready, stop, restarts, pings"
    table.append(("control", "ROUTER – DEALER", LAUNCHER, "every process", carried))
    widths = [max(len(line[column]) for line in table) + 2 for column in range(5)]
    lines = [
        "".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    return [
        *lines,
        "",
        "All but tcp are files in the run directory. N is the generation of the process below: how",
        "often it was started again.",
    ]
