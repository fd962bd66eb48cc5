"""Records of what happened elsewhere: interruptions and requests, in our own form and others'."""
