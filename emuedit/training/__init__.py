"""Training of the editor: training loop, loss, task inversion, distributed processes; batches, optimizers and memory."""
