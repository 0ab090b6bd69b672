"""Kills a real process that makes a store, at random moments, again and again; prints what it saw as JSON.

Everything is imported once, and every process that is killed is a fork of this one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import actinium as ac

SITES = ["blocks.1.resid_post", "blocks.2.attn.z"]


def digest(folder):
    """Names and contents of all files."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


def main(folder, kills):
    """Kill until so many have hit; every store that was finished must be that of one undisturbed run."""
    torch.set_num_threads(1)  # a fork has none of the threads of its parent
    model, texts = ac.load("world:lm"), ac.world.heldout_text("lm")[:60]

    def create(path):
        options = {"context": 32, "batch_size": 4, "shard_mb": 0.03, "progress": False}
        return ac.store.create(path, model, texts, SITES, dtype="int8", **options)

    create(folder / "reference")
    begun = time.monotonic()
    create(folder / "again")
    length = time.monotonic() - begun
    expected, source = digest(folder / "reference"), random.Random(0)
    hit, store, finished, states = 0, 0, [], set()
    while hit < kills:
        path = folder / f"store-{store}"
        child = os.fork()
        if child == 0:
            try:
                create(path)
                os._exit(0)
            except BaseException as error:
                print(error, file=sys.stderr)
                os._exit(1)
        time.sleep(source.uniform(0, length))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            hit += 1
            if (path / "manifest.json").exists():
                left = ac.store.open(path)
                states.add(len(left.manifest.shards))
                assert left.verify() == [], left.verify()
                if len(left):
                    left[SITES[0]][:]
            else:
                states.add(-1)
        elif os.WEXITSTATUS(status) == 0:
            finished.append(digest(path) == expected)
            store += 1
        else:
            finished.append(False)
            break
    create(path)
    finished.append(digest(path) == expected)
    print(json.dumps({"killed": hit, "finished": finished, "states": len(states)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
