"""Checks `vllm serve` commands by vLLM's own parser, command, configuration and model classes, on no GPU.

The platform is vLLM's own for CUDA; only what it would ask the driver comes from the request. A request is
{argv, environment, gpus, capability, memory_bytes, uuids, layers}: with `layers` the model is built too, that many
layers of it, on the meta device, as rank 0 of its groups: that is where vLLM checks what a rank holds of each weight.
{"classes": true} asks for all classes of vLLM's registry instead, and whether they support pipelines.
"""

from __future__ import annotations

import gc
import os
from functools import _lru_cache_wrapper

from answering import Answer, Request, answer_all, strict_parsers

os.environ.update(
    VLLM_TARGET_DEVICE="cuda",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
)
strict_parsers()

import torch  # noqa: E402
from stand_ins import Anything, stand_in_for  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

COMPILED = ("_C", "_moe_C", "_C_cache_ops", "_C_custom_ar", "_vllm_fa2_C", "_vllm_fa3_C", "_qutlass_C")
"""Name spaces of kernels, which exist only where their libraries can be loaded."""

stand_in_for(
    *("vllm._C", "vllm._C_stable_libtorch", "vllm._moe_C", "vllm._moe_C_stable_libtorch", "vllm.vllm_flash_attn"),
    *("torchvision", "torchaudio", "cuda", "timm"),
    "vllm.third_party.deep_gemm",
)
find_kernel = torch._ops._OpNamespace.__getattr__
register_fake = torch.library.register_fake


def any_kernel(self, name):  # type: ignore[no-untyped-def]
    try:
        return find_kernel(self, name)
    except AttributeError:
        if self.name not in COMPILED or name.startswith("__"):
            raise
        return Anything()


def register_known(kernel, *arguments, **named):  # type: ignore[no-untyped-def]
    if isinstance(kernel, str) and kernel.partition("::")[0] in COMPILED:
        return lambda function: function
    return register_fake(kernel, *arguments, **named)


torch._ops._OpNamespace.__getattr__ = any_kernel
torch.library.register_fake = register_known
torch.cuda.Stream = torch.cuda.Event = Anything
torch.cuda.current_device = lambda: torch.device("meta")

import vllm.platforms  # noqa: E402
from vllm.platforms.cuda import NonNvmlCudaPlatform  # noqa: E402
from vllm.platforms.interface import DeviceCapability  # noqa: E402


class ToldPlatform(NonNvmlCudaPlatform):
    """CUDA as vLLM knows it, on GPUs that the request describes."""

    gpus: int = 8
    capability: tuple[int, int] = (9, 0)
    memory_bytes: int = 80 << 30
    uuids: tuple[str, ...] = ()

    @classmethod
    def device_count(cls) -> int:
        return cls.gpus

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        return DeviceCapability(*cls.capability)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "a GPU that was told"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return cls.memory_bytes

    @classmethod
    def device_control_id_to_physical_device_id(cls, device_id: str) -> int:
        return cls.uuids.index(device_id) if device_id in cls.uuids else int(device_id)

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        return 132

    @classmethod
    def import_kernels(cls) -> None:
        pass

    @classmethod
    def import_ir_kernels(cls) -> None:
        pass


vllm.platforms._current_platform = ToldPlatform()

import vllm.distributed.parallel_state as groups  # noqa: E402
import vllm.entrypoints.cli.serve as serve  # noqa: E402
import vllm.model_executor.models.registry as registry  # noqa: E402
import vllm.triton_utils  # noqa: E402
from vllm.config import VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.distributed.utils import get_pp_indices  # noqa: E402
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager  # noqa: E402
from vllm.model_executor.model_loader.utils import initialize_model  # noqa: E402
from vllm.usage.usage_lib import UsageContext  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402


class TritonConfig:
    """What @triton.autotune tries; some modules look into it when they are imported."""

    def __init__(self, kwargs: dict[str, int], num_warps: int = 4, num_stages: int = 2, **others: int) -> None:
        self.kwargs, self.num_warps, self.num_stages = kwargs, num_warps, num_stages


vllm.triton_utils.triton.Config = TritonConfig
registry._run_in_subprocess = lambda inspect: inspect()  # it would import torch again for each class, without these

ExpertMapManager.get_compressed_map_string = lambda self: "a log of values that are not there"

started: list[str] = []
for name in ("run_headless", "run_multi_api_server", "run_dp_supervisor"):
    setattr(serve, name, lambda arguments, name=name: started.append(name))


async def run_server(arguments: object) -> None:
    started.append("run_server")


serve.run_server = run_server
parser = FlexibleArgumentParser(prog="vllm")
command = serve.ServeSubcommand()
command.subparser_init(parser.add_subparsers(dest="subparser"))


def check(request: Request) -> Answer:
    if request.get("classes"):
        return {"pipeline": pipeline_support()}
    for fact in ("gpus", "memory_bytes"):
        setattr(ToldPlatform, fact, request.get(fact, getattr(ToldPlatform, fact)))
    forget(tuple(request.get("capability", (9, 0))))
    ToldPlatform.uuids = tuple(request.get("uuids", ()))
    started.clear()
    arguments = parser.parse_args(request["argv"][1:])
    command.validate(arguments)
    command.cmd(arguments)
    engine = AsyncEngineArgs.from_cli_args(arguments)
    config = engine.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER, headless=arguments.headless)
    resolved = resolved_by(config) | {"started": list(started), "port": arguments.port}
    if request.get("layers"):
        build(config, request["layers"])
    return resolved


def forget(capability: tuple[int, int]) -> None:
    """Another GPU from now on: what vLLM remembers of the last one is forgotten."""
    if capability == ToldPlatform.capability:
        return
    ToldPlatform.capability = capability
    for remembered in gc.get_objects():
        if isinstance(remembered, _lru_cache_wrapper):
            remembered.cache_clear()


def resolved_by(config: VllmConfig) -> Answer:
    p = config.parallel_config
    layers = config.model_config.get_total_num_hidden_layers()
    spans = [get_pp_indices(layers, stage, p.pipeline_parallel_size) for stage in range(p.pipeline_parallel_size)]
    return {
        "tp": p.tensor_parallel_size,
        "pp": p.pipeline_parallel_size,
        "dp": p.data_parallel_size,
        "ep": p.enable_expert_parallel,
        "nodes": p.nnodes,
        "node_rank": p.node_rank,
        "master": [p.master_addr, p.master_port],
        "backend": p.distributed_executor_backend,
        "devices": p.assigned_physical_gpu_ids,
        "layers": [end - start for start, end in spans],
        "custom_all_reduce": not p.disable_custom_all_reduce,
        "memory_utilization": config.cache_config.gpu_memory_utilization,
        "kv_cache_bytes": config.cache_config.kv_cache_memory_bytes,
        "max_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_sequences": config.scheduler_config.max_num_seqs,
        "max_context": config.model_config.max_model_len,
        "dtype": str(config.model_config.dtype),
    }


class OnNothing(TorchFunctionMode):
    """What is made for CUDA is made without memory, by shape alone."""

    def __torch_function__(self, function, types, arguments=(), named=None):  # type: ignore[no-untyped-def]
        named = dict(named or {})
        if "cuda" in str(named.get("device", "")):
            named["device"] = "meta"
        return function(*arguments, **named)


class Ranks:
    """A process group's size and this rank's place, as far as layers ask; also what vLLM wraps one in."""

    def __init__(self, size: int) -> None:
        self.world_size, self.ranks = size, list(range(size))
        self.rank = self.rank_in_group = self.local_rank = self.first_rank = 0
        self.last_rank = size - 1
        self.is_first_rank, self.is_last_rank = True, size == 1
        self.device_group = self.cpu_group = Size(size)
        self.device_communicator = self.mq_broadcaster = None
        self.use_custom_op_call, self.unique_name = False, "told"


class Size:
    def __init__(self, size: int) -> None:
        self.told = size

    def size(self) -> int:
        return self.told

    def rank(self) -> int:
        return 0


def build(config: VllmConfig, layers: int) -> None:
    """Makes the model's first layers as rank 0 would, without memory. Raises what its layers refuse."""
    p = config.parallel_config
    experts = p.tensor_parallel_size * p.prefill_context_parallel_size * p.data_parallel_size
    sizes = {"_TP": p.tensor_parallel_size, "_DP": p.data_parallel_size, "_EP": experts, "_WORLD": p.world_size}
    for name in ("_TP", "_DP", "_EP", "_WORLD", "_PP", "_PCP", "_DCP", "_EPLB"):
        setattr(groups, name, Ranks(sizes.get(name, 1)))
    text = config.model_config.hf_text_config
    text.num_hidden_layers = min(text.num_hidden_layers, layers)
    os.environ.pop("VLLM_PP_LAYER_PARTITION", None)  # what is built is one stage of the first layers
    usual = torch.get_default_dtype()
    torch.set_default_dtype(config.model_config.dtype)
    try:
        with set_current_vllm_config(config, check_compile=False), torch.device("meta"), OnNothing():
            initialize_model(config)
    finally:
        torch.set_default_dtype(usual)


def pipeline_support() -> dict[str, bool | str]:
    """Class name -> whether vLLM runs it in stages, or why its class could not be asked."""
    told: dict[str, bool | str] = {}
    for name, model in sorted(registry.ModelRegistry.models.items()):
        try:
            told[name] = model.inspect_model_cls().supports_pp
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told


if __name__ == "__main__":
    answer_all(vllm.__version__, check)
