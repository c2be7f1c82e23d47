"""What ABMLL costs beside plain PEFT LoRA: the parts of `benchmarks/speed.py`, one idea a file.

`clock` alternates and takes medians; `memory` and `profiling` watch the same regions. `bases` and `texts` make models
and questions of an exact shape; `lora` and `abmll_method` are what is compared, `setting` puts them together. `rows`
says what is measured and what must be reached, `floor` counts what cannot be saved. `must_reach`, `sweeps` and
`startup` are the cases; `machine` says where they ran; `table` writes them down.
"""
