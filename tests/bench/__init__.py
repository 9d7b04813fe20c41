"""Benchmarks: in processes whose threads wait for each other as a command's do, which is settled before torch is imported."""

from tlray.machine.threads import yield_cores

yield_cores()
