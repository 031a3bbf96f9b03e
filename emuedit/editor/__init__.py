"""The editor: a base model's U-Net extended to take a picture and a task, how it edits, and how it is stored."""
