"""Networks in Flax linen: the vision transformer, its light decoder, and what they share."""
