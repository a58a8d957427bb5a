"""What a sweep is made of: the space of settings, who proposes the next trial, and the record of what was tried."""
