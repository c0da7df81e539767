"""What goes on to the platform behind a gateway, and what comes back."""
