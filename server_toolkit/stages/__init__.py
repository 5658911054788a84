"""What happens after the rounds: distil, harden, evaluate, release, each resumable and recorded."""
