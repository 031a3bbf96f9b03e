"""Annotators for photographs: target images of the vision tasks, from public networks and drawing code."""
