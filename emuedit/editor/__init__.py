"""Our network: a base_model's U-Net that reads a picture, an instruction and a task; its loss, its batches, its inference."""
