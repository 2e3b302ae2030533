"""Decoding speed on this machine's CPU, beside llama.cpp on the same float32 weights, in one run.

    pip install -e ".[bench]" && python scripts/bench_generate.py
    python scripts/bench_generate.py --threads 1      # one core each; the only fair choice on a machine that others use too

Writes the dequantised SmolLM2-135M-Instruct as a float32 GGUF file (538 MB, deleted afterwards), checks that both
programs continue a prompt with the same tokens, then times them in turn: greedy tokens after a chat prompt, one sequence
at a time, and eight sequences in one batch. A rate is NEW - 1 tokens over the time of NEW tokens less the time of one,
each the best of ROUNDS, so reading the prompt does not count. Times are the clock's, and the process's own CPU seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpt.generate import Engine, Request
from jaxpt.generate.__main__ import keep_compiled
from jaxpt.interop import gguf_file, text_model

QUESTION = [("user", "Write a short story about a lighthouse keeper who finds a message in a bottle.")]
BATCH = 8


def write_float32(source: Path, target: Path) -> None:
    """The same model with every tensor in float32."""
    import gguf

    file = gguf_file.open_file(source)
    writer = gguf.GGUFWriter(target, file.metadata["general.architecture"])
    for key, value in file.metadata.items():
        if key in ("general.architecture", "general.file_type"):
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            kinds[type(value)](key, value)
    writer.add_uint32("general.file_type", 0)
    for name in file.names:
        writer.add_tensor(name, file.read(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_server(path: Path, threads: int) -> Any:
    """llama.cpp with float32 weights and cache, no flash attention: what we compute."""
    import xllamacpp as x

    params = x.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = -1
    return x.Server(params)


def llama_run(server: Any, ids: list[int], new: int) -> list[str]:
    """The pieces of text of `new` greedy tokens."""
    asked = {
        "prompt": ids, "max_tokens": new, "n_predict": new, "temperature": 0.0, "cache_prompt": False,
        "ignore_eos": True, "logprobs": 1, "n_probs": 1,
    }  # fmt: skip
    answer = server.handle_completions(asked)
    answer = json.loads(answer) if isinstance(answer, str) else answer
    return [entry["token"] for entry in answer["choices"][0]["logprobs"]["content"]]


def our_run(engine: Engine, ids: list[int], new: int, batch: int) -> tuple[int, ...]:
    """The token ids of a row, through the public call."""
    return engine.complete([Request(tuple(ids), max_new=new) for _ in range(batch)], batch_size=batch)[0].ids


def timed(run: Callable[[], Any]) -> np.ndarray:
    """[seconds, CPU seconds of this process] of a call."""
    start = np.array([time.perf_counter(), time.process_time()])
    run()
    return np.array([time.perf_counter(), time.process_time()]) - start


def bandwidth(rounds: int = 5) -> float:
    """GB/s at which this process adds up 512 MB: what bounds decoding one sequence."""
    import jax
    import jax.numpy as jnp

    x, total = jnp.ones(2**27), jax.jit(jnp.sum)
    total(x).block_until_ready()
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        total(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return x.nbytes / best / 1e9


def main() -> None:
    """Runs the comparison and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", type=int, default=64, help="tokens to decode")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores for either program")
    options = parser.parse_args()
    keep_compiled()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.threads]))  # before JAX counts its threads
    load = os.getloadavg()[0]
    start = time.perf_counter()
    model = text_model.load("smollm2")
    engine = Engine.of(dataclasses.replace(model, stop_ids=()))
    print(f"loaded in {time.perf_counter() - start:.1f} s")
    ids = model.chat.encode(QUESTION, model.vocabulary) if model.chat else []
    (name,) = text_model.PACKAGES["smollm2"].files
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "float32.gguf"
        write_float32(text_model.PACKAGES["smollm2"].locate() / name, path)
        server = llama_server(path, options.threads)
        same = agreement(model, our_run(engine, ids, options.new, 1), llama_run(server, ids, options.new))
        programs: dict[str, tuple[int, Callable[[int], Any]]] = {
            "llama.cpp, one sequence": (1, lambda new: llama_run(server, ids, new)),
            "jaxpt, one sequence": (1, lambda new: our_run(engine, ids, new, 1)),
            f"jaxpt, {BATCH} sequences": (BATCH, lambda new: our_run(engine, ids, new, BATCH)),
        }
        our_run(engine, ids, options.new, BATCH)  # compiles
        times: dict[tuple[str, int], list[np.ndarray]] = {}
        for _ in range(options.rounds):
            for program, (_, run) in programs.items():
                for new in (1, options.new):
                    times.setdefault((program, new), []).append(timed(lambda run=run, new=new: run(new)))
        del server
    best = {key: np.min(rows, 0) for key, rows in times.items()}
    rates = {p: n * (options.new - 1) / (best[p, options.new] - best[p, 1]) for p, (n, _) in programs.items()}
    base = rates["llama.cpp, one sequence"]
    print(
        f"\n{platform.machine()}, {options.threads} threads, load before the run {load:.1f}, {bandwidth():.0f} GB/s; "
    )
    print(f"the first {same} of {options.new} greedy tokens agree\n")
    print("| | tokens/s | of llama.cpp | tokens per CPU second | of llama.cpp |\n|---|---|---|---|---|")
    for program, (clock, cpu) in rates.items():
        print(f"| {program} | {clock:.1f} | {clock / base[0]:.2f} | {cpu:.1f} | {cpu / base[1]:.2f} |")


def agreement(model: text_model.TextModel, ids: Sequence[int], pieces: list[str]) -> int:
    """How many of the first tokens have the same text."""
    ours = [model.vocabulary.decode([i]) for i in ids]
    return next((n for n, (a, b) in enumerate(zip(ours, pieces, strict=False)) if a != b), min(len(ours), len(pieces)))


if __name__ == "__main__":
    main()
