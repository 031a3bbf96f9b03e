"""The editor: a base model's U-Net extended by image and task inputs; sampling and storage."""
