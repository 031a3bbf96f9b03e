"""Annotators for photographs: they create target images of the vision tasks with public networks and plain drawing."""
