"""Decoding speed on this machine's CPU, beside llama.cpp on the same float32 weights, in one run.

    pip install xllamacpp gguf && python scripts/bench_generate.py            # about two minutes on two idle cores

Writes the dequantised SmolLM2-135M-Instruct as a float32 GGUF file (538 MB, deleted afterwards), checks that both
programs continue a prompt with the same tokens, then times them in turn: NEW greedy tokens after a chat prompt, one
sequence at a time, and eight sequences in one batch. Every figure is the best of ROUNDS; prompt processing is timed apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import tempfile
import time
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


def llama_run(server: Any, ids: list[int], new: int) -> tuple[list[str], float, float]:
    """(pieces, tokens/s while decoding, tokens/s while reading the prompt), the latter two by llama.cpp's own clock."""
    asked = {
        "prompt": ids, "max_tokens": new, "n_predict": new, "temperature": 0.0, "cache_prompt": False,
        "ignore_eos": True, "logprobs": 1, "n_probs": 1,
    }  # fmt: skip
    answer = server.handle_completions(asked)
    answer = json.loads(answer) if isinstance(answer, str) else answer
    timings = answer["timings"]
    pieces = [entry["token"] for entry in answer["choices"][0]["logprobs"]["content"]]
    return pieces, timings["predicted_per_second"], timings["prompt_per_second"]


def our_run(engine: Engine, ids: list[int], new: int, batch: int) -> tuple[list[int], float, float]:
    """(token ids of a row, tokens/s over all rows while decoding, prompt tokens/s), through the public loop."""
    requests = [Request(tuple(ids), max_new=new) for _ in range(batch)]
    start = time.perf_counter()
    times, ids_so_far = [], []
    for transcripts in engine.decode(requests):
        times.append(time.perf_counter())
        ids_so_far = transcripts[0].ids
    first, end = times[0], times[-1]
    return ids_so_far, batch * (new - 1) / (end - first), batch * len(ids) / (first - start)


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
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    keep_compiled()
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
        pieces, *_ = llama_run(server, ids, options.new)
        same = agreement(model, our_run(engine, ids, options.new, 1)[0], pieces)
        our_run(engine, ids, options.new, BATCH)
        speeds: dict[str, list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            speeds.setdefault("llama.cpp, one sequence", []).append(llama_run(server, ids, options.new)[1:])
            speeds.setdefault("jaxpt, one sequence", []).append(our_run(engine, ids, options.new, 1)[1:])
            speeds.setdefault(f"jaxpt, {BATCH} sequences", []).append(our_run(engine, ids, options.new, BATCH)[1:])
        del server
    best = {name: np.max(rows, 0) for name, rows in speeds.items()}
    base = best["llama.cpp, one sequence"][0]
    print(
        f"\n{platform.processor() or platform.machine()}, {options.threads} threads, load before the run {load:.1f}, "
    )
    print(f"{bandwidth():.0f} GB/s; the first {same} of {options.new} greedy tokens agree\n")
    print("| | tokens/s | of llama.cpp, one sequence | prompt tokens/s |\n|---|---|---|---|")
    for name, (decode, prompt) in best.items():
        print(f"| {name} | {decode:.1f} | {decode / base:.2f} | {prompt:.0f} |")


def agreement(model: text_model.TextModel, ids: list[int], pieces: list[str]) -> int:
    """How many of the first tokens have the same text."""
    ours = [model.vocabulary.decode([i]) for i in ids]
    return next((n for n, (a, b) in enumerate(zip(ours, pieces, strict=False)) if a != b), min(len(ours), len(pieces)))


if __name__ == "__main__":
    main()
