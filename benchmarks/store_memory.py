"""Makes and reads a large store in a process of its own, and prints the peaks of its memory as JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn

import actinium as ac

WIDTH, WINDOW = 4096, 512


def own() -> int:
    """Bytes of memory that belong to this process alone (mapped files are the system's, which takes them back)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory a process has")


class Peak:
    """The largest memory during a block, over that at its beginning."""

    def __enter__(self):
        self.before, self.most, self.over = own(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.over.is_set():
            self.most = max(self.most, own() - self.before)
            time.sleep(0.01)

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()


def main(path: str, gigabytes: float) -> None:
    model = ac.Model(nn.Sequential(nn.Embedding(1000, WIDTH)))
    windows = int(gigabytes * 1e9 / (2 * WIDTH * WINDOW)) + 1
    ids = torch.randint(0, 1000, (windows, WINDOW), generator=torch.Generator().manual_seed(0))
    before = own()
    with Peak() as making:
        store = ac.store.create(path, model, ids, "module:0", context=WINDOW, packing="pad", progress=False)
    size = sum(file.bytes for shard in store.manifest.shards for file in shard.sites)
    with Peak() as reading:
        for _ in store.batches("module:0", 2048, dtype=torch.float32):
            pass
    print(json.dumps({"before": before, "making": making.most, "reading": reading.most, "size": size}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
