"""Processes that fail are heard; what they tell arrives. The demo and the grid run in them."""

import queue
import warnings
from types import SimpleNamespace

import pytest

from abmll.errors import AbmllWarning, UserError
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


def test_of_a_processs_warnings_ours_are_shown_alone_and_each_text_once(monkeypatch, capsys):
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def warn(share, tell):
        for _ in range(2):
            with warnings.catch_warnings():  # as libraries do; Python forgets what it has shown
                warnings.warn("theirs", UserWarning, stacklevel=1)
                warnings.warn("ours", AbmllWarning, stacklevel=1)

    with warnings.catch_warnings():
        workers._process(warn, 1, queue.Queue())
    assert capsys.readouterr().err == "warning: ours\n"
