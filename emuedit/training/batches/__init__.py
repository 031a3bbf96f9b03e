"""From published pairs to batches: kept pairs, latent cache, aspect buckets, order of training."""
