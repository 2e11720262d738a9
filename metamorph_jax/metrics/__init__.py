"""Counting and telling: FLOPs and parameters, throughput, metric files, progress, phases."""
