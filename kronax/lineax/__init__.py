"""kronax's operators in lineax's words."""
