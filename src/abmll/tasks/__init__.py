"""What is learned: examples, tasks, suites; where they come from, how they are split and how they are asked.

Nothing here imports torch or transformers; `datasets`, pandas and pyarrow are imported where they are first needed.
"""

from abmll.tasks.catalogue import suite_names
from abmll.tasks.demonstrations import choose_demonstrations
from abmll.tasks.files import from_dataframe, from_dataset, load_questions, load_task, write_jsonl
from abmll.tasks.folders import load_suite, save_suite
from abmll.tasks.foreign import Foreign
from abmll.tasks.hub import fetch_suite, fetch_task
from abmll.tasks.inspection import check, describe
from abmll.tasks.prompts import PromptTemplate
from abmll.tasks.splits import Rows, draw_rows, hold_out_validation, suite_hash
from abmll.tasks.task import Example, Suite, Task

__all__ = [
    "Example",
    "Foreign",
    "PromptTemplate",
    "Rows",
    "Suite",
    "Task",
    "check",
    "choose_demonstrations",
    "describe",
    "draw_rows",
    "fetch_suite",
    "fetch_task",
    "from_dataframe",
    "from_dataset",
    "hold_out_validation",
    "load_questions",
    "load_suite",
    "load_task",
    "save_suite",
    "suite_hash",
    "suite_names",
    "write_jsonl",
]
