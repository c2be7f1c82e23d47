"""The embedded suite `mini`: generated tasks with hidden facts and a known Bayes posterior."""

from abmll.tasks.synthetic.suite import bayes_ceiling, mini_suite

__all__ = ["bayes_ceiling", "mini_suite"]
