"""Modules that the benchmarks import. Every other Python file of `bench/` is a command."""
