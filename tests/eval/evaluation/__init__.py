"""Measures the security and the correctness of generated code.

Modules in the order of a run: `command` reads what is asked for, `configurations` and the suites (`scenarios`,
`problems`, `tasks`) say what to ask of whom, `generation` asks by way of `server`, `completion` makes programs of the
answers, `judges` and `execution` (in a `sandbox`) decide on them, `results` keeps every step, `metrics` and
`statistics` count, `tables` and `plots` show.
"""
