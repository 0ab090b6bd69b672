"""Reading and making stores: beside a plain sequential read, other libraries' buffers, and a plain forward pass.

The peers, `sae-lens` and `dictionary-learning`, need an older nnsight than the other benchmarks: give them an
environment of their own.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import actinium as ac
from benchmarks.page import alone
from benchmarks.paired import Goal, Ratio, Row, agree, interleave
from benchmarks.settings import Settings, gpt2, tokens

__all__ = ["rows"]

SITE, BATCH, CONTEXT = "module:0", 2048, 128
MEGABYTES = 1 << 20


def rows(settings: Settings) -> list[Row]:
    """Rates of reading, time of making, and memory of both."""
    folder = Path(tempfile.mkdtemp(prefix="actinium-benchmark-"))
    try:
        return [*_reading(settings, folder), *_making(settings, folder), *_memory(settings, folder)]
    finally:
        shutil.rmtree(folder)


def _reading(settings: Settings, folder: Path) -> list[Row]:
    """Shuffled batches of float16 rows of width 768, each as a float16 tensor of its own."""
    windows, width = (64, 96) if settings.tiny else (3000, 768)
    source = torch.randn(windows, CONTEXT, width, generator=torch.Generator().manual_seed(0)).half()
    flat = source.view(-1, width).numpy()
    plain = np.lib.format.open_memmap(folder / "plain.npy", "w+", flat.dtype, flat.shape)
    plain[:] = flat
    plain.flush()
    del plain
    model = ac.Model(nn.Sequential(nn.Identity()))
    data = source.view(-1, width).float()
    path = folder / "store"
    store = ac.store.create(path, model, data, SITE, batch_size=4096, shard_mb=64, progress=False)
    # Compared through another opening of it: pages that are mapped could not be dropped.
    agree("rows", ac.store.open(path)[SITE][:].numpy().astype(np.float32), flat.astype(np.float32), 0)

    # Scattered and ordered reads map the files, whose pages then stay: they have a copy of their own.
    other = ac.store.open(shutil.copytree(path, folder / "copy"))
    iterations = {
        "cold": store.batches(SITE, BATCH, dtype=torch.float32),
        "shuffled": other.batches(SITE, BATCH, dtype=torch.float32),
        "exact": other.batches(SITE, BATCH, dtype=torch.float32, block=1),
        "in order": other.batches(SITE, BATCH, dtype=torch.float32, shuffle=False),
    }

    def sequential(cold: bool) -> None:
        if cold:
            _forget([folder / "plain.npy"])
        mapped = np.load(folder / "plain.npy", mmap_mode="r")
        for start in range(0, len(mapped), BATCH):
            torch.from_numpy(np.array(mapped[start : start + BATCH])).float()

    def epoch(name: str, cold: bool) -> None:
        if cold:
            _forget(sorted(path.rglob("*.safetensors")))
        for _ in iterations[name]:
            pass

    runs: dict[str, Callable[[], object]] = {}
    for name, cold in (("cold", True), ("hot", False)):
        runs[f"{name} memmap"] = partial(sequential, cold)
        runs[f"{name} shuffled"] = partial(epoch, "cold" if cold else "shuffled", cold)
    runs["hot exact"] = partial(epoch, "exact", False)
    runs["hot in order"] = partial(epoch, "in order", False)
    runs |= _cached_peer(folder, source, len(flat))
    times = interleave(runs, settings.repeats(9), settings.clock, "reading")
    peer, what = "numpy.memmap, read in order", "rows per second / peer's"
    size = f"{len(flat):,} rows of {width} float16, given as float32"

    def ratio(above: str, below: str) -> Ratio:
        return Ratio.of(times[above], times[below])

    table = [
        Row(
            f"shuffled batches from the disk, {size}: {what}",
            peer,
            ratio("cold memmap", "cold shuffled"),
            Goal(">=", 0.8),
        ),
        Row(f"shuffled batches from the system's cache: {what}", peer, ratio("hot memmap", "hot shuffled")),
        Row(f"an exact permutation from the cache: {what}", peer, ratio("hot memmap", "hot exact")),
        Row(f"batches in order from the cache: {what}", peer, ratio("hot memmap", "hot in order")),
    ]
    other = "SAELens, cached activations (Arrow), mixing buffer"
    found = ratio("saelens", "hot shuffled") if "saelens" in times else "not installed"
    table.append(Row("shuffled batches from the cache: tokens per second / peer's", other, found, Goal(">=", 3)))
    return [*table, _live_peer(settings, times["hot shuffled"], len(flat))]


def _forget(paths: list[Path]) -> None:
    """Have the system drop its copies of files, so that they come from the disk (pages in use by a map stay)."""
    gc.collect()
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _cached_peer(folder: Path, source: torch.Tensor, total: int) -> dict[str, Callable[[], object]]:
    """SAELens reading the same rows from its cached dataset."""
    try:
        import datasets
        from sae_lens import ActivationsStore
    except ImportError:
        return {}
    windows, context, width = source.shape
    features = datasets.Features({SITE: datasets.Array2D((context, width), "float16")})

    def generate():
        for window in source.numpy():
            yield {SITE: window}

    made = datasets.Dataset.from_generator(generate, features=features, cache_dir=str(folder / "hub"))
    made.save_to_disk(str(folder / "cached"))

    def read() -> None:
        store = ActivationsStore(
            model=None,
            dataset=None,
            streaming=False,
            hook_name=SITE,
            hook_head_index=None,
            context_size=context,
            d_in=width,
            n_batches_in_buffer=min(512, windows // 4),
            total_training_tokens=total,
            store_batch_size_prompts=8,
            train_batch_size_tokens=BATCH,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float32",
            cached_activations_path=str(folder / "cached"),
        )
        for _ in range(total // BATCH):
            next(store)

    return {"saelens": read}


def _live_peer(settings: Settings, ours: list[float], total: int) -> Row:
    """dictionary_learning's buffer fed by a model of the same width."""
    what = "shuffled batches: tokens per second / peer's"
    peer, goal = "dictionary_learning ActivationBuffer, fed by a model of one block", Goal(">=", 3)
    try:
        from dictionary_learning import ActivationBuffer
        from nnsight import LanguageModel
    except ImportError:
        return Row(what, peer, "not installed", goal)
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = ac.load("world:lm").tokenizer
    width = 96 if settings.tiny else 768
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=width, n_head=12, vocab_size=len(tokenizer), n_positions=CONTEXT)
    model = LanguageModel(GPT2LMHeadModel(config).eval(), tokenizer=tokenizer)
    words = " ".join(["Ann lives in Orla"] * 40)
    buffer = ActivationBuffer(
        iter([words] * 10**6),
        model,
        model.transformer.h[0],
        d_submodule=width,
        n_ctxs=128,
        ctx_len=CONTEXT,
        refresh_batch_size=32,
        out_batch_size=BATCH,
    )
    count = 24

    def read() -> None:
        for _ in range(count):
            next(buffer)

    times = interleave({"buffer": read}, min(5, len(ours)), settings.clock, "live buffer")["buffer"]
    theirs = [seconds / (count * BATCH) for seconds in times]
    mine = [seconds / total for seconds in ours[: len(theirs)]]
    return Row(what, peer, Ratio.of(theirs, mine), goal)


def _making(settings: Settings, folder: Path) -> list[Row]:
    """One site of GPT-2 small's shape, written, beside the forward pass alone over the same windows."""
    module = gpt2(settings.tiny)
    model = ac.Model(module)
    windows, length, per_pass = (8, 16, 4) if settings.tiny else (32, CONTEXT, 8)
    ids = tokens(module, windows, length)
    last = f"blocks.{model.n_layers - 1}.resid_post"
    number = iter(range(10**6))

    def made() -> None:
        path = folder / f"made-{next(number)}"
        ac.store.create(path, model, ids, last, context=length, batch_size=per_pass, packing="pad", progress=False)
        shutil.rmtree(path)

    @torch.no_grad()
    def passes(run: nn.Module) -> None:
        for start in range(0, windows, per_pass):
            run(ids[start : start + per_pass], use_cache=False)

    runs = {"made": made, "whole": partial(passes, module), "blocks": partial(passes, module.transformer)}
    times = interleave(runs, settings.repeats(9), settings.clock, "making")
    what = f"make a store of {last}, {windows * length:,} tokens: time / peer's"
    return [
        Row(what, "forward passes over the same windows", Ratio.of(times["made"], times["whole"]), Goal("<=", 1.05)),
        Row(what, "the same without the unembedding", Ratio.of(times["made"], times["blocks"])),
    ]


def _memory(settings: Settings, folder: Path) -> list[Row]:
    """Peak of a process's own memory while it makes and reads a large store, over that with the model loaded."""
    gigabytes = 0.05 if settings.tiny else 5.0
    script = Path(__file__).with_name("store_memory.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "large"), str(gigabytes)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    limit = Goal("<", 1024, " MB")
    table = []
    for name in ("making", "reading"):
        more = found[name] / MEGABYTES
        what = f"{name} a store of {found['size'] / 1e9:.2g} GB: memory of its own, {more:.0f} MB more: peak / before"
        value = (found["before"] + found[name]) / found["before"]
        table.append(Row(what, "the process with its model loaded", Ratio(value, value, value), limit, more))
    return table


if __name__ == "__main__":
    alone(rows, __doc__)
