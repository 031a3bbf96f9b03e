"""Training of the editor: latent cache, loss, training loop, distributed processes."""
