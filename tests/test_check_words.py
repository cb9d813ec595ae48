"""Words of a checked command: what a shell makes of them, what the engine's parser refuses, and what was misspelled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import wirelore

from configgen.check import check
from configgen.checked import Check, Standing
from configgen.engines.language import Language
from configgen.engines.reading import Command, read_command
from configgen.engines.rules import engine_traits
from configgen.engines.spellings import LANGUAGES
from configgen.hub import load_model
from configgen.plan import Workload
from probe.errors import UsageError
from probe.measurement import Survey
from probe.sources.machines import machine

MODEL = "Qwen/Qwen3-32B"
NEAR = ("--from", "machine:3090-bridges-4")


def judged(text: str, where: str = "hgx-h100", model: str = "llama-3.1-70b") -> Check:
    read = read_command(text)
    known = load_model(model, offline=True)
    return check(Survey(machine(where)), read, known, Workload(), engine_traits(read.engine))


@pytest.mark.parametrize(
    "text",
    [
        f"vllm serve {MODEL} > log 2>&1 --tensor-parallel-size 4",
        f"vllm serve {MODEL} &> log -tp 4",
        f"vllm serve {MODEL} -tp 4 </dev/null >>log 2>errors",
        f"vllm serve {MODEL} -tp 4 # of two GPUs: -tp 2",
        f"# don't forget\nvllm serve {MODEL} -tp 4\n",
        f"vllm serve {MODEL} \\\n  -tp 4 \\\n  # -tp 2\necho done",
        f"vllm serve {MODEL}\n  -tp 4\n  --port 9",
        f"export A=b\nvllm serve {MODEL} -tp 4\necho done",
        f"bash -c 'vllm serve {MODEL} -tp 4'",
        f'nohup sh -c "cd /srv && exec vllm serve {MODEL} -tp 4 > log" &',
        f"docker run --rm -it --gpus all -v a:b -p 8000:8000 --ipc=host vllm/vllm-openai:v0.33.0 --model {MODEL} -tp 4",
        f"docker run --runtime nvidia --unheard of image vllm serve {MODEL} -tp 4",
        f"uv run vllm serve {MODEL} -tp 4",
        f"timeout -k 5 60 nice -n 5 taskset -c 0-31 vllm serve {MODEL} -tp 4",
        f"vllm serve {MODEL} --tensor-parallel-size +4",
    ],
)
def test_what_a_shell_takes_away_is_no_word_of_the_engine(text: str) -> None:
    read = read_command(text)
    assert (read.model, read.number("tp"), read.number("nnodes")) == (MODEL, 4, 1)
    assert read.refused == ()
    assert read.unknown == ()


@pytest.mark.parametrize(
    "text",
    [
        "timeout 60 env {} vllm serve m",
        "sudo -E {} vllm serve m",
        "env -i {} vllm serve m",
        "A=b env -u B {} nohup vllm serve m",
        "mpirun -n 1 -x B=c -x {} vllm serve m",
        "docker run -e B=c -e {} image vllm serve m",
        "docker run --gpus '\"device=6,7\"' image vllm serve m",
        "docker run -e {} image bash -lc 'cd /srv && vllm serve m'",
        "bash -c '{} vllm serve m'",
    ],
)
def test_the_environment_counts_wherever_it_is_set(text: str) -> None:
    read = read_command(text.format("CUDA_VISIBLE_DEVICES=6,7"))
    assert read.names("visible devices") == ("6", "7")


def test_what_env_takes_away_is_gone() -> None:
    assert not read_command("CUDA_VISIBLE_DEVICES=6 env -i vllm serve m").environment
    assert not read_command("A=b CUDA_VISIBLE_DEVICES=6 env -u A -u CUDA_VISIBLE_DEVICES vllm serve m").environment


def test_no_visible_gpu_is_none() -> None:
    told = judged("CUDA_VISIBLE_DEVICES= vllm serve m -tp 4")
    assert told.standing is Standing.REFUSED
    assert "CUDA_VISIBLE_DEVICES is empty" in told.verdict


def test_one_letter_may_stand_before_its_value() -> None:
    read = read_command("vllm serve m -r1 -n2 -qawq")
    assert (read.number("node rank"), read.number("nnodes"), read.said["quantization"]) == (1, 2, "awq")
    assert read_command("srun -N2 -n16 trtllm-serve m --tp_size 16").number("launcher nodes") == 2


@pytest.mark.parametrize(
    ("flags", "meaning", "is_"),
    [
        ("--max-model-len 32_768", "context", 32768),
        ("--max-model-len 1.5k", "context", 1500),
        ("--max-num-batched-tokens 8K", "tokens", 8192),
    ],
)
def test_whole_numbers_are_read_as_the_engine_reads_them(flags: str, meaning: str, is_: int) -> None:
    assert read_command(f"vllm serve m {flags}").number(meaning) == is_


@pytest.mark.parametrize(("text", "is_"), [("1.", 1.0), ("9e-1", 0.9), (".5", 0.5), ("0.85", 0.85)])
def test_fractions_are_read_as_the_engine_reads_them(text: str, is_: float) -> None:
    assert read_command(f"vllm serve m --gpu-memory-utilization {text}").fraction("memory fraction") == is_


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("vllm serve m --max-num-seqs 1k", "sequences"),
        ("sglang serve --model-path m --chunked-prefill-size 8k", "tokens"),
        ("vllm serve m --max-model-len 1.5K", "context"),
    ],
)
def test_a_suffix_counts_only_where_the_engine_takes_one(text: str, meaning: str) -> None:
    with pytest.raises(UsageError):
        read_command(text).number(meaning)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vllm serve m --tp 2", "vLLM has no --tp: say -tp"),
        ("vllm serve m -tp2", "vLLM has no -tp2: say -tp"),
        ("vllm serve m --Tensor-Parallel-Size 2", "say --tensor-parallel-size"),
        ("vllm serve m --tensor-paralel-size 2", "say --tensor-parallel-size"),
        ("vllm serve m --tensor-model-parallel-size 2", "say --tensor-parallel-size"),
        ("vllm serve m --data-parallel 4", "vLLM refuses --data-parallel: it may be --data-parallel-"),
        ("vllm serve m --max-num 4", "vLLM refuses --max-num: it may be --max-num-"),
        ("vllm serve m --base-gpu-id 2", "vLLM has no --base-gpu-id"),
        ("sglang serve --model-path m --tp_size 4", "SGLang has no --tp_size: say --tp-size"),
        ("sglang serve --model-path m --pp 4", "SGLang refuses --pp: it may be"),
        ("sglang serve --model-path m -tp 4", "SGLang has no -tp: say --tp"),
        ("trtllm-serve m --tp-size 4", "TensorRT-LLM has no --tp-size: say --tp_size"),
        ("trtllm-serve m --tp 4", "TensorRT-LLM has no --tp: say --tp_size"),
        ("python -m mii.entrypoints.openai_api_server --model m --tp 4", "say --tensor-parallel"),
        ("vllm serve m extra -tp 4", "no flag takes extra"),
        ("vllm serve m --model other", "no flag takes m"),
        ("vllm serve m -- -tp 4", "no flag takes -tp, 4"),
        ("vllm serve m --disable-custom-all-reduce=true", "the flag takes no value"),
        ("vllm serve m --disable-custom-all-reduce true", "no flag takes true"),
        ("vllm serve m --device-ids 0 1 -tp 2", "no flag takes 1"),
        ("vllm serve m --config options.json", "it wants .yaml or .yml"),
        ("vllm serve m -tp 8 --max-num-seqs 9000 --max-num-batched-tokens 100", "--max-num-seqs 9000"),
        ("vllm serve m -tp 8 --max-num-seqs 9000", "--max-num-seqs 9000"),
        ("vllm serve m -tp 8 --no-enable-chunked-prefill --max-num-batched-tokens 8k", "prompts in one piece"),
        ("vllm serve m -tp 8 -dcp 3", "decode context parallelism of 3: TP is 8"),
        ("vllm serve m -tp 8 -dcp 2", "TP8 of 8 KV heads allows 1"),
    ],
)
def test_what_an_engines_parser_refuses_is_refused(text: str, says: str) -> None:
    told = judged(text)
    assert told.standing is Standing.REFUSED
    assert any(says in law for law in told.laws), told.laws


@pytest.mark.parametrize(
    "flags",
    [
        "-tp 8 --max-num-seqs 9000 --max-num-batched-tokens 16k",
        "-tp 8 --no-enable-chunked-prefill --max-num-batched-tokens 8k --max-model-len 8000",
        "-tp 8 --no-enable-chunked-prefill --max-num-batched-tokens 8k --enable-chunked-prefill",
        "-tp 8 --lora-modules a=b c=d --cudagraph-capture-sizes 1 2 4",
        "-tp 8 --tensor-parallel-backend x --tp-comm 1",
        "--tensor 8 --max-num-queued-reqs 5",
    ],
)
def test_neighbours_of_what_is_refused_are_not(flags: str) -> None:
    assert judged(f"vllm serve m {flags}").laws == ()


def abbreviating() -> list[Language]:
    return [language for language in LANGUAGES if language.abbreviates]


@pytest.mark.parametrize("language", abbreviating(), ids=lambda language: language.engine)
def test_no_beginning_of_a_size_is_passed_over(language: Language) -> None:
    start = language.example.replace("MODEL ...", "m").replace("...", "")
    for flag in language.size_spellings:
        for end in range(4, len(flag) + 1):
            read: Command = read_command(f"{start} {flag[:end]} 2")
            known = any(read.said.get(meaning) == "2" for meaning in language.sizes)
            assert known or read.refused or flag[:end] in language.all_flags, flag[:end]
            assert read.unknown == (), flag[:end]


@pytest.mark.parametrize(
    ("text", "name", "holds", "says"),
    [
        (f"vllm serve {MODEL} --config f.yaml", "f.yaml", "device-ids: [0, 1]\ntensor-parallel-size: 2\n", "a list of"),
        (f"vllm serve {MODEL} --config f.yaml", "f.yaml", "tp: 4\n", "vLLM has no --tp"),
        (f"sglang serve {MODEL} --config f.yaml", "f.yaml", "tensor_parallel_size: 4\n", "--tensor_parallel_size"),
        (f"trtllm-serve {MODEL} --config f.yaml", "f.yaml", "tp_size: 4\n", "options file has no tp_size"),
    ],
)
def test_options_files_are_refused_alike(tmp_path: Path, text: str, name: str, holds: str, says: str) -> None:
    (tmp_path / name).write_text(holds)
    told = wirelore("check", text, *NEAR, "--strict", cwd=tmp_path)
    assert told.code == 1
    assert says in told.out.splitlines()[0]


def test_a_list_of_one_in_an_options_file_is_its_entry(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("device-ids: [3]\n")
    told = wirelore("check", f"vllm serve {MODEL} --config f.yaml", *NEAR, "--format", "json", cwd=tmp_path)
    assert json.loads(told.data())["replicas"] == [[[{"node": 0, "gpu": 3}]]]


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    text = f"docker run -e HF_TOKEN=hush-hush vllm/vllm-openai --model {MODEL} --api-key hush-hush and-this -tp 4"
    told = wirelore("check", text, *NEAR, "--format", "json", cwd=tmp_path)
    assert '"tensor_parallel_size": 4' in told.out
    assert "hush" not in told.out
