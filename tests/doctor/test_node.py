"""What one node says of itself."""

import socket
import time

import pytest

from minimoe_dist.doctor import node


def test_the_unrelated_apex_is_told_from_the_real_one(tmp_path, monkeypatch):
    package = tmp_path / "apex"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert node.apex() == "other"
    for part in ("normalization", "optimizers"):
        (package / part).mkdir()
    assert node.apex() == "real"


def test_a_check_that_hangs_is_given_up():
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        node.within(0.1, lambda: time.sleep(5))
    assert time.monotonic() - started < 4


def test_a_port_that_is_taken_is_seen():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not node.port_is_free(taken.getsockname()[1])
