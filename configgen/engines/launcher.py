"""The one door from a Plan to its engine's commands; only that engine's module is loaded."""

from __future__ import annotations

from configgen.launch import Launch
from configgen.plan import Plan


def launch_of(plan: Plan) -> Launch:
    """The plan as processes of the engine that it was made for."""
    match plan.engine.engine:
        case "vllm":
            from configgen.engines.vllm import vllm_launch

            return vllm_launch(plan)
        case "trtllm":
            from configgen.engines.trtllm import trtllm_launch

            return trtllm_launch(plan)
        case "megatron":
            from configgen.engines.megatron import megatron_launch

            return megatron_launch(plan)
        case "deepspeed":
            from configgen.engines.deepspeed import deepspeed_launch

            return deepspeed_launch(plan)
        case "sglang":
            from configgen.engines.sglang import sglang_launch

            return sglang_launch(plan)
    raise AssertionError(f"rules.py knows {plan.engine.engine} and the launcher doesn't")
