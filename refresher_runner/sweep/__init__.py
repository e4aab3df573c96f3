"""What happens around a multirun."""
