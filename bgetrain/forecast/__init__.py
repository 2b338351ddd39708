"""What a run will hold, compute and send, before anything is allocated."""
