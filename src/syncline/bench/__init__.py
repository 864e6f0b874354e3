"""Measurements that stand beside their yardsticks: every figure is a ratio of two runs on the same rows, paired."""
