"""What leaves a run: other formats, the hub, and what stands beside the student."""
