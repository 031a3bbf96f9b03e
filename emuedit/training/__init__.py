"""How the editor is trained: latent cache, loss, training loop, distributed processes."""
