"""Memory of a GPU that several processes map, and settings that rule it out."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pools_harness import PoolsHarness, pools_config
from tiny_model import TinyPair

from pdv_mp.config import ConfigError
from pdv_mp.memory.cuda_ipc import CudaBuffer, CudaRuntime, check_allocator, gpu_uuid

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("variable", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
@pytest.mark.parametrize(
    "settings",
    [
        "expandable_segments:True",
        "max_split_size_mb:64, expandable_segments : true",
        "backend:cudaMallocAsync",
    ],
)
def test_allocators_that_break_sharing_are_refused(
    variable: str, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, settings)
    with pytest.raises(ConfigError, match=f"{variable}=.* cannot be combined"):
        check_allocator()


@pytest.mark.parametrize("settings", ["", "expandable_segments:False", "max_split_size_mb:64"])
def test_other_allocators_are_not(settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", settings)
    check_allocator()


class TestOnGpu:
    """Needs a GPU whose driver lets processes share memory."""

    pytestmark = needs_gpu

    def test_another_process_sees_the_same_memory(self) -> None:
        device = torch.device("cuda:0")
        runtime = CudaRuntime()
        buffer = CudaBuffer.create(runtime, 5 << 20, 3, device)
        small = CudaBuffer.create(runtime, 10, 1, device)
        try:
            assert not buffer.tensor().any()
            assert not buffer.words().any()
            buffer.tensor()[7] = 41
            small.tensor()[9] = 17
            torch.cuda.synchronize()
            program = (
                "import sys, torch\n"
                "from pdv_mp.memory.cuda_ipc import CudaBuffer, CudaRuntime, gpu_uuid\n"
                "device, runtime = torch.device('cuda:0'), CudaRuntime()\n"
                "assert gpu_uuid(device) == sys.argv[1]\n"
                "one = CudaBuffer.open(runtime, bytes.fromhex(sys.argv[2]), 5 << 20, 3, device)\n"
                "two = CudaBuffer.open(runtime, bytes.fromhex(sys.argv[3]), 10, 1, device)\n"
                "one.tensor()[7] += two.tensor()[9]\n"
                "one.words()[2] = 1 << 62\n"
                "torch.cuda.synchronize()\n"
                "one.close(); two.close()\n"
            )
            handles = [part.handle().hex() for part in (buffer, small)]
            command = [sys.executable, "-c", program, gpu_uuid(device), *handles]
            subprocess.run(command, check=True, timeout=100)
            assert buffer.tensor()[7] == 58
            assert buffer.words().tolist() == [0, 0, 1 << 62]
        finally:
            buffer.close()
            small.close()
        with pytest.raises(ValueError, match="is closed"):
            buffer.tensor()

    def test_a_handle_of_nothing_is_refused_in_a_sentence(self) -> None:
        with pytest.raises(ConfigError, match="cannot be shared between processes here"):
            CudaBuffer.open(CudaRuntime(), bytes(64), 1 << 20, 1, torch.device("cuda:0"))
        assert torch.ones(2, device="cuda").sum() == 2, "torch does not find the error again"

    def test_lanes_share_weights_and_kv(self, tiny_pair: TinyPair) -> None:
        config = pools_config(
            "pdv",
            tiny_pair.verifier,
            tiny_pair.draft,
            device="cuda:0",
            dtype="float32",
            kv_cache_memory=1 << 24,
        )
        with PoolsHarness(config) as harness:
            harness.start_pools()
            workers = [harness.start_worker(name) for name in ("prefill-0", "verify-0")]
            assert all(worker.attached()["attached"] for worker in workers)
            prefill, verify = workers
            slot = verify.ask("acquire", 5)
            expected = prefill.ask("forward", "target", slot, [5, 9, 2, 200, 31])
            written = prefill.ask("read", "target", slot, 5)
            assert verify.ask("read", "target", slot, 5) == written != 0.0
            assert verify.ask("forward", "target", slot, [5, 9, 2, 200, 31]) == expected
            assert [worker.leave() for worker in workers] == [0, 0]
            assert harness.stop_pools() == 0
