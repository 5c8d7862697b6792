"""The LightningModules: they wire model, loss, gradient and optimizer together."""
