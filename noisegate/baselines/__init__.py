"""What the gates are compared with."""
