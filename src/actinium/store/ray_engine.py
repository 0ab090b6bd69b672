"""The same work on several processes or machines: a pool of Ray actors, each with a model of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from actinium.core.errors import MissingExtraError
from actinium.store.address import Address
from actinium.store.manifest import Manifest, Shard, StoredSite
from actinium.store.pipeline import write_shard
from actinium.store.progress import Meter
from actinium.store.recorder import Recorder
from actinium.store.windows import Block

__all__ = ["shards"]

QUEUED = 2  # blocks that an actor has, so that it need not wait for the next


@dataclass(frozen=True)
class _Work:
    address: Address
    sites: list[StoredSite]
    recorder: Recorder


class _Actor:
    """Computes and writes blocks with a model of its own."""

    def __init__(self, work: _Work, gpu: bool) -> None:
        self.work = work
        if gpu:
            work.recorder.model.module.to("cuda")

    def write(self, block: Block) -> tuple[int, Shard]:
        """Write the shard of a block, and give its number and entry."""
        work = self.work
        batches = work.recorder.batches(block)
        return block.number, write_shard(work.address, work.sites, work.recorder, block, batches)


def shards(
    address: Address, manifest: Manifest, recorder: Recorder, found: Iterator[Block], workers: int, meter: Meter
) -> Iterator[Shard]:
    """Shards in their order, each computed and written by some actor.

    The driver cuts the data into blocks as the actors ask for them, so that only a few are under way however much
    there is. (Ray Data would have all of the input named beforehand, which a stream of documents is not.) A block is
    one task: Ray gives those of an actor that dies to the one that takes its place, and a shard that was written
    already is written again with the same bytes, so the store does not depend on who did what.

    Args:
        address: a place that every machine sees.
        manifest: of the store.
        recorder: of the driver; the actors get copies of its model.
        found: blocks to do.
        workers: actors; each takes a GPU where the cluster has one for each, else a processor.
        meter: is told of the blocks that are done.

    Raises:
        MissingExtraError: Ray is not installed.
        StoreError: as raised by an actor.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    begun = not ray.is_initialized()
    if begun:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    pool: list[Any] = []
    try:
        gpu = ray.cluster_resources().get("GPU", 0) >= workers
        work = ray.put(_Work(address, manifest.sites, recorder))
        kind = ray.remote(_Actor).options(
            num_gpus=int(gpu), num_cpus=int(not gpu), max_restarts=-1, max_task_retries=-1
        )
        pool = [kind.remote(work, gpu) for _ in range(workers)]
        yield from _in_order(ray, pool, found, len(manifest.shards), meter, recorder)
    finally:
        for actor in pool:
            ray.kill(actor)
        if begun:
            ray.shutdown()
        address.sweep()


def _in_order(
    ray: Any, pool: list[Any], found: Iterator[Block], number: int, meter: Meter, recorder: Recorder
) -> Iterator[Shard]:
    free = deque(pool * QUEUED)
    waiting: dict[Any, tuple[Any, Block]] = {}
    done: dict[int, Shard] = {}
    more = True
    while more or waiting:
        while more and free and len(done) < 4 * len(pool):
            block = next(found, None)
            if block is None:
                more = False
                break
            actor = free.popleft()
            waiting[actor.write.remote(block)] = (actor, block)
        if not waiting:
            continue
        for ref in ray.wait(list(waiting), num_returns=1)[0]:
            actor, block = waiting.pop(ref)
            free.append(actor)
            try:
                made, shard = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            done[made] = shard
            meter.did(shard)
        while number in done:
            yield done.pop(number)
            number += 1
