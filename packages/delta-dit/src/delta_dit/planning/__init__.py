"""Making a plan for a model: measure it once, predict what plans would do, try the best, and improve the winner."""
