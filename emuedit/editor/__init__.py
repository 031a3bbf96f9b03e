"""Our network: a painter's U-Net that reads a picture, an instruction and a task; its loss, its batches, its inference."""
