"""Killed, interrupted, out of space, or with another writer beside: nothing is lost, doubled or half there."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import actinium as ac

SITE = "blocks.1.resid_post"
OPTIONS = {"context": 32, "batch_size": 4, "shard_mb": 0.1, "progress": False}


def digest(folder):
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


def test_fifty_kills_leave_the_bytes_of_an_undisturbed_run(tmp_path):
    script = Path(__file__).with_name("crash_worker.py")
    done = subprocess.run([sys.executable, script, tmp_path, "50"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] == 50
    assert told["finished"]
    assert all(told["finished"])
    assert told["states"] > 3  # the kills came at different moments


def test_two_runs_write_the_same_bytes(lm, texts, tmp_path):
    for name in ("a", "b"):
        ac.store.create(tmp_path / name, lm, texts, SITE, **OPTIONS)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_a_finished_store_is_opened_and_not_made_again(lm, texts, tmp_path):
    first = ac.store.create(tmp_path / "s", lm, texts, SITE, **OPTIONS)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")}
    again = ac.store.create(tmp_path / "s", lm, texts, SITE, **OPTIONS)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")} == times
    assert again.fingerprint == first.fingerprint


def test_an_interrupt_keeps_whole_shards_and_says_so(lm, texts, tmp_path):
    many = texts * 4
    whole = ac.store.create(tmp_path / "whole", lm, many, SITE, **OPTIONS)
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "import actinium as ac\n"
        "texts = ac.world.heldout_text('lm')[:90] * 4\n"
        "model = ac.load('world:lm')\n"
        "print('ready', flush=True)\n"
        f"ac.store.create(sys.argv[1], model, texts, {SITE!r}, **{OPTIONS!r})\n"
    )
    path = tmp_path / "s"
    child = subprocess.Popen(
        [sys.executable, "-c", script, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    child.stdout.readline()
    shards = path / "rows"
    limit = time.monotonic() + 60
    while time.monotonic() < limit and (not shards.exists() or len(list(shards.glob("*.parquet"))) < 2):
        time.sleep(0.002)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert "KeyboardInterrupt:" in told
    assert "shards are kept at" in told
    assert not list(path.rglob("*.partial"))
    left = ac.store.open(path)
    assert not left.complete
    assert 0 < len(left.manifest.shards) < len(whole.manifest.shards)
    assert not left.verify()
    ac.store.create(path, lm, many, SITE, **OPTIONS)
    assert digest(path) == digest(tmp_path / "whole")


def test_a_full_disk_keeps_what_was_written(lm, texts, tmp_path):
    whole = ac.store.create(tmp_path / "whole", lm, texts, SITE, **OPTIONS)
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place], capture_output=True)
    if mounted.returncode:  # not root: a limit on the size of files stops the writing as a full disk does
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ac.errors.StoreError, match=r"no space left; free some|too large"):
            ac.store.create(place / "s", lm, texts, SITE, **OPTIONS)
        left = ac.store.open(place / "s")
        assert not left.verify()
        assert not list((place / "s").rglob("*.partial"))
        if not mounted.returncode:
            assert 0 < len(left.manifest.shards) < len(whole.manifest.shards)
            assert subprocess.run(["mount", "-o", "remount,size=50m", place]).returncode == 0
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        ac.store.create(place / "s", lm, texts, SITE, **OPTIONS)
        assert digest(place / "s") == digest(tmp_path / "whole")
    finally:
        if mounted.returncode:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        else:
            subprocess.run(["umount", "-l", place], check=True)


def test_a_read_only_folder_is_refused_before_work(lm, tmp_path):
    if os.geteuid() == 0:
        target = "/proc/store"  # where root cannot write either
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        target = tmp_path / "closed" / "store"
    with pytest.raises(ac.errors.StoreError, match="cannot write to"):
        ac.store.create(target, lm, ["Ann lives in Orla."], SITE, **OPTIONS)


def test_a_second_writer_is_refused_and_told_who_writes(lm, texts, tmp_path):
    from actinium.store.address import Address
    from actinium.store.lock import writing

    for address in (Address(tmp_path / "s"), Address(f"memory://{tmp_path.name}/s")):
        with writing(address):
            busy = pytest.raises(ac.errors.StoreError, match=f"is being written by process {os.getpid()} on")
            with busy, writing(address):
                pass
            with pytest.raises(ac.errors.StoreError, match="is being written by"):
                ac.store.create(address.text, lm, texts, SITE, **OPTIONS)
        ac.store.create(address.text, lm, texts[:5], SITE, **OPTIONS)


def test_the_place_of_a_dead_writer_is_taken(lm, texts, tmp_path):
    import fsspec

    from actinium.store import lock

    where = f"memory://{tmp_path.name}/dead"
    gone = {"host": "far", "process": 1, "time": time.time() - lock.SILENT - 1, "id": "x"}
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/dead/{lock.NAME}", json.dumps(gone).encode())
    store = ac.store.create(where, lm, texts[:5], SITE, **OPTIONS)
    assert store.complete


def test_many_writers_at_once_make_one_store(tmp_path):
    """Whoever comes second is refused or finds the store; nobody empties what another has begun."""
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "import actinium as ac\n"
        "model, texts = ac.load('world:lm'), ac.world.heldout_text('lm')[:40]\n"
        "sys.stdin.readline()\n"
        "try:\n"
        f"    print(len(ac.store.create(sys.argv[1], model, texts, {SITE!r}, **{OPTIONS!r})))\n"
        "except ac.errors.StoreError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "s"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    said = []
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        said.append(writer.communicate(timeout=120)[0].strip())
        assert writer.returncode == 0
    store = ac.store.open(tmp_path / "s")
    assert store.complete
    assert store.verify() == []
    assert all(one == str(len(store)) or "is being written by" in one for one in said)
    assert str(len(store)) in said
