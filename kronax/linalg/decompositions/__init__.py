"""Ways of solving: one final class each."""
