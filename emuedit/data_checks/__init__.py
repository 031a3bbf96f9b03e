"""Checks of the kept pairs before anything is trained on them: what is measured, against which bounds, and the report."""
