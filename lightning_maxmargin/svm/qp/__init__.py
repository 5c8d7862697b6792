"""The quadratic program on the working rows, by the method that fits its size."""
