"""What a pretrained backbone is worth, and what its training looked like."""
