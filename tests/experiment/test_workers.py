"""Processes that fail are heard; what they tell arrives. The demo and the grid run in them."""

import queue
from types import SimpleNamespace

import pytest

from abmll.errors import UserError
from abmll.experiment import workers


class Worker(SimpleNamespace):
    def is_alive(self):
        return False


def test_a_process_that_fails_is_heard(monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for fault, kind in ((UserError("no room"), UserError), (ZeroDivisionError("x"), RuntimeError)):
        news, heard = queue.Queue(), []

        def fail(share, tell, fault=fault):
            tell(f"began {share}")
            raise fault

        workers._process(fail, 7, news)
        with pytest.raises(kind, match=r"no room|ZeroDivisionError"):
            workers._listen([Worker(exitcode=0)], news, heard.append)
        assert heard == ["began 7"]
    with pytest.raises(RuntimeError, match="ended with status -9"):
        workers._listen([Worker(exitcode=-9)], queue.Queue(), lambda _: None)
