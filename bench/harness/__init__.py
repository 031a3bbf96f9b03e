"""Modules used by the benchmarks. Every other Python file of `bench/` is a command."""
