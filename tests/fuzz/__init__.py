"""Random damage to what users give: files are read right, or refused in one sentence.

`python -m tests.fuzz --minutes 10` searches; the suite runs a few cases of fixed seed.
"""
