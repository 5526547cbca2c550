"""What this package costs, measured: ``python -m benchmarks``.

Every benchmark compares ways to do one thing, side by side in one run, and judges its ratio or difference by a goal.
The suite is a list in ``suite``; each entry runs in a process of its own, so that one failure or one imported library
does not colour the next. What can't run on a machine is recorded as not measured, with the reason.
"""
