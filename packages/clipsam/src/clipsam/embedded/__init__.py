"""The small models that ship: what they are, and the recipes that made them."""
