"""What a training step will cost on devices that need not be there."""
