"""What the loop is fed with: sources, augmentation, masks and batches. Import the module you need."""
