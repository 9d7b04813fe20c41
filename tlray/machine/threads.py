"""How threads that share a computation wait for each other, beside other work on the same cores."""

import os

SPINS = 10_000
"""Rounds that a thread of GNU's OpenMP waits in before it sleeps; 0.1 to 0.3 ms. Chosen by measurement: without other
work as fast as its own number, which is 30 times this one, and with it seven times as fast (docs/benchmarks.md)."""


def yield_cores() -> None:
    """Have OpenMP's threads sleep soon where they wait for others, in this process and in those that it starts.

    For processes of our own, which call it before anything imports torch or FAISS: GNU's OpenMP reads it once, when it is
    loaded. By itself its threads keep their cores while they wait, and where other processes want these, the thread that all
    wait for does not get one. Nothing is changed where the user has said how threads are to wait (`OMP_WAIT_POLICY`,
    `GOMP_SPINCOUNT`); see the manual of libgomp. Other implementations of OpenMP, as on Macs, do not know it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
