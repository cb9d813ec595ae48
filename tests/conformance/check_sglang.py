"""Checks `sglang serve` commands by SGLang's own parser and its own resolution and validation, on no GPU.

What it would ask the driver comes from the request: {argv, environment, gpus, capability, memory_bytes}. SGLang looks
at heads, experts and the number of GPUs only when it loads, so those refusals are not seen here.
"""

from __future__ import annotations

import os

from answering import Answer, Request, answer_all, strict_parsers

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
strict_parsers()

import torch  # noqa: E402
from stand_ins import Anything, stand_in_for  # noqa: E402

stand_in_for(
    *("torchvision", "torchaudio", "decord", "av", "soundfile", "timm", "outlines", "modelscope", "datasets"),
    *("flashinfer", "sgl_kernel", "deep_gemm", "cuda", "gguf", "scipy", "numba", "blobfile", "kernels"),
)


class Gpu(Anything):
    """What torch would tell of each GPU."""

    name, count, multi_processor_count = "a GPU that was told", 8, 132
    major, minor, total_memory = 9, 0, 80 << 30

    @classmethod
    def told(cls, request: Request) -> None:
        cls.major, cls.minor = request.get("capability", (9, 0))
        cls.count, cls.total_memory = request.get("gpus", 8), request.get("memory_bytes", 80 << 30)


torch.version.cuda = "13.0"  # many modules ask when they are imported, and remember
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: Gpu.count
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda *device: (Gpu.major, Gpu.minor)
torch.cuda.get_device_name = lambda *device: Gpu.name
torch.cuda.get_device_properties = lambda *device: Gpu
torch.cuda.mem_get_info = lambda *device: (Gpu.total_memory, Gpu.total_memory)
torch.cuda.Stream = torch.cuda.Event = Anything

import sglang  # noqa: E402
from sglang.srt.distributed.utils import get_pp_indices  # noqa: E402
from sglang.srt.runtime_context import override_platform  # noqa: E402
from sglang.srt.server_args import prepare_server_args  # noqa: E402

SERVE = ("sglang", "serve")
TOLD = (
    *("tp_size", "pp_size", "dp_size", "attn_dp_size", "ep_size", "nnodes", "node_rank", "dist_init_addr"),
    *("base_gpu_id", "gpu_id_step", "port", "disable_custom_all_reduce", "mem_fraction_static", "chunked_prefill_size"),
    *("max_running_requests", "context_length", "dtype", "device"),
)


def check(request: Request) -> Answer:
    assert tuple(request["argv"][:2]) == SERVE
    Gpu.told(request)
    major, minor = Gpu.major, Gpu.minor
    level = 10 * major + minor
    platform = {
        "is_cuda": True,
        "is_sm90": level == 90,
        "is_sm100": major == 10,
        "is_sm110": level == 110,
        "is_sm100_or_sm110": major in (10, 11),
        "is_sm120": level >= 120,
        "is_blackwell": level >= 100,
        "is_hopper_with_cuda_12_3": level == 90,
        "has_flashinfer": True,
        "device_sm": level,
        "device_capability": (major, minor),
        **dict.fromkeys(("is_hip", "is_npu", "is_xpu", "is_musa", "is_mps", "has_amx"), False),
    }
    arguments = prepare_server_args(request["argv"][2:])
    with override_platform(**platform):
        arguments.resolve_once()
        arguments.check_server_args()
        resolved = arguments.resolved_dict()
    return {name: resolved.get(name) for name in TOLD} | {"layers": layers(arguments, resolved["pp_size"])}


def layers(arguments: object, stages: int) -> list[int]:
    """Of each stage, by SGLang's own cut."""
    from sglang.srt.configs.model_config import ModelConfig

    count = ModelConfig.from_server_args(arguments).num_hidden_layers
    spans = [get_pp_indices(count, stage, stages) for stage in range(stages)]
    return [end - start for start, end in spans]


if __name__ == "__main__":
    answer_all(sglang.__version__, check)
