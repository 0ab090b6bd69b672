"""Stores on other machines: an S3-compatible server, fsspec's memory, and Ray workers."""

from __future__ import annotations

import socket
import threading

import pytest
import torch

import actinium as ac

SITE = "blocks.1.resid_post"
OPTIONS = {"context": 32, "batch_size": 4, "shard_mb": 0.2, "progress": False, "dtype": "float32"}


@pytest.fixture(scope="module")
def s3():
    """Options of an S3 file system whose server runs in this process."""
    from moto.server import ThreadedMotoServer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port)
    server.start()
    options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "k", "secret": "s"}
    import s3fs

    s3fs.S3FileSystem(**options, skip_instance_cache=True).mkdir("bucket")
    yield options
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def place(request, tmp_path):
    if request.param == "memory":
        return f"memory://{tmp_path.name}", {}
    return f"s3://bucket/{tmp_path.name}", {"storage_options": request.getfixturevalue("s3")}


def test_a_remote_store_is_the_local_one(lm, texts, packed, place):
    where, options = place
    store = ac.store.create(f"{where}/s", lm, texts, ["blocks.1.resid_post", "blocks.2.attn.z"], **OPTIONS, **options)
    assert store.manifest == packed.manifest
    assert store.verify() == []
    opened = ac.store.open(f"{where}/s", **options, verify=True)
    assert torch.equal(opened[SITE][:], packed[SITE][:])
    ours = [b.sum(1) for b in opened.batches(SITE, 100, seed=1)]
    assert all(torch.equal(a, b.sum(1)) for a, b in zip(ours, packed.batches(SITE, 100, seed=1), strict=True))
    assert opened.top(SITE, 3, 5).equals(packed.top(SITE, 3, 5))
    assert str(opened.context(50)) == str(packed.context(50))
    torch.testing.assert_close(opened.stats(SITE).cov, packed.stats(SITE).cov)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_single_rows_are_fetched_without_their_shard(lm, texts, place, dtype, tmp_path):
    where, options = place
    ac.store.create(f"{where}/t", lm, texts, SITE, **{**OPTIONS, "dtype": dtype}, **options)
    store = ac.store.open(f"{where}/t", cache=tmp_path / "cache", **options)
    wanted = [3, 700, 3, 90]
    few = store.rows(SITE, wanted)
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True
    assert torch.equal(few, store[SITE][:][wanted])
    assert list((tmp_path / "cache").glob("*"))


def test_a_remote_store_goes_on_where_it_stopped(lm, texts, packed, place):
    where, options = place
    sites = ["blocks.1.resid_post", "blocks.2.attn.z"]
    store = ac.store.create(f"{where}/u", lm, texts, sites, **OPTIONS, **options)
    half = store.manifest.model_copy(update={"complete": False, "shards": store.manifest.shards[:2]})
    half.save(store.address)
    store.address.remove(store.manifest.shards[3].sites[0].name)
    again = ac.store.create(f"{where}/u", lm, texts, sites, **OPTIONS, **options)
    assert again.manifest == packed.manifest
    assert again.verify() == []


def test_damage_on_the_way_is_found(lm, texts, place):
    where, options = place
    store = ac.store.create(f"{where}/v", lm, texts[:20], SITE, **OPTIONS, **options)
    name = store.manifest.shards[0].sites[0].name
    store.address.write(name, store.address.read(name)[:-3] + b"abc")
    with pytest.raises(ac.errors.StoreError, match="checksum differs"):
        ac.store.open(f"{where}/v", **options)[SITE][:]
    assert len(store.verify()) == 1


def test_an_unknown_protocol_is_refused(lm):
    with pytest.raises(ac.errors.InputError, match="cannot read the address 'nowhere://x'"):
        ac.store.create("nowhere://x", lm, ["a"], SITE)


# Ray ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


def test_two_workers_with_one_killed_give_the_rows_of_one_process(lm, texts, packed, tmp_path, cluster):
    import os
    import signal

    import psutil

    killed = []

    def kill_one():
        # Wait until some shard is there, then kill a worker process outright.
        rows = tmp_path / "s" / "rows"
        while not stop.is_set():
            if rows.exists() and any(rows.glob("*.parquet")):
                for process in psutil.process_iter(["cmdline"]):
                    if any("ray::_Actor" in part for part in process.info["cmdline"] or []):
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                        return
            stop.wait(0.01)

    stop = threading.Event()
    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        store = ac.store.create(
            tmp_path / "s",
            lm,
            texts * 2,
            ["blocks.1.resid_post", "blocks.2.attn.z"],
            engine="ray",
            workers=2,
            **OPTIONS,
        )
    finally:
        stop.set()
        thread.join()
    assert killed
    alone = ac.store.create(tmp_path / "a", lm, texts * 2, ["blocks.1.resid_post", "blocks.2.attn.z"], **OPTIONS)
    assert store.complete
    assert store.verify() == []
    assert not list((tmp_path / "s").rglob("*.partial"))
    assert store.query("SELECT * FROM rows ORDER BY row").equals(alone.query("SELECT * FROM rows ORDER BY row"))
    torch.testing.assert_close(store[SITE][:], alone[SITE][:], atol=2e-5, rtol=1e-4)
    assert [s.rows for s in store.manifest.shards] == [s.rows for s in alone.manifest.shards]


def test_an_error_in_a_worker_is_that_of_the_work(lm, tmp_path, cluster):
    with pytest.raises(ac.errors.InputError, match="token ids go from"):
        ids = [[1, 2, 3]] * 400 + [[10**6]]
        ac.store.create(tmp_path / "s", lm, ids, SITE, engine="ray", workers=1, **{**OPTIONS, "shard_mb": 0.02})
    left = ac.store.open(tmp_path / "s")
    assert left.verify() == []
