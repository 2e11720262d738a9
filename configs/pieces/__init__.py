"""Small functions that recipes are made of."""
