"""Training of DINO-family backbones: losses, phases, recipes and the loop that runs them."""
