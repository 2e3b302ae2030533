"""One run at a time in a folder; the lock of a run that is gone is no obstacle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from jaxpt.training.lock import NAME, Lock, LockError


def test_the_second_is_refused_and_the_folder_is_free_again_after(tmp_path):
    first = Lock(tmp_path / "run")
    with pytest.raises(LockError, match=rf"run is in use by process {os.getpid()} on host .* since .*--out"):
        Lock(tmp_path / "run")
    first.release()
    assert list((tmp_path / "run").iterdir()) == []
    Lock(tmp_path / "run").release()


def written(path, **changes):
    """The lock of this process, with changes, left behind."""
    lock = Lock(path.parent)
    content = json.loads(path.read_text()) | {"token": "other"} | changes
    lock.release()
    path.write_text(json.dumps(content))
    return content


@pytest.mark.parametrize("gone", ["process", "its id is used again", "before a reboot"])
def test_a_lock_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path, gone):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    changes = {
        "process": {"pid": child.pid},
        "its id is used again": {"started": "1"},
        "before a reboot": {"boot": "earlier"},
    }
    written(tmp_path / NAME, **changes[gone])
    start = time.monotonic()
    lock = Lock(tmp_path, patience=60)
    assert time.monotonic() - start < 5
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_host_is_watched_for_a_sign_of_life(tmp_path):
    path = tmp_path / NAME
    content = written(path, host="elsewhere")
    done = threading.Event()

    def live():
        while not done.wait(0.05):
            content["beat"] += 1
            path.with_suffix(".new").write_text(json.dumps(content))
            path.with_suffix(".new").rename(path)

    other = threading.Thread(target=live)
    other.start()
    with pytest.raises(LockError, match="on host elsewhere since"):
        Lock(tmp_path, patience=30)
    done.set()
    other.join()
    Lock(tmp_path, patience=0.3).release()  # now it is silent


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_cannot_be_read_is_taken_over_after_a_look(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    Lock(tmp_path, patience=0.3).release()


def test_a_run_that_lost_its_folder_notices_and_leaves_the_lock_alone(tmp_path):
    lock = Lock(tmp_path, refresh=0.02)
    lock.check()
    content = json.loads((tmp_path / NAME).read_text()) | {"token": "other", "host": "elsewhere", "pid": 9}
    deadline = time.monotonic() + 20
    while not lock._lost and time.monotonic() < deadline:
        (tmp_path / NAME).write_text(json.dumps(content))
        time.sleep(0.1)
    with pytest.raises(LockError, match="was taken over by process 9 on host elsewhere since .*writes nothing more"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / NAME).read_text()) == content


def test_the_holder_gives_signs_of_life(tmp_path):
    lock = Lock(tmp_path, refresh=0.02)
    seen, deadline = set(), time.monotonic() + 20
    while len(seen) < 3 and time.monotonic() < deadline:
        seen.add(json.loads((tmp_path / NAME).read_text())["beat"])
    lock.release()
    assert len(seen) >= 3
