"""Annotators of photographs: the targets of the vision tasks from named networks and plain drawing."""
