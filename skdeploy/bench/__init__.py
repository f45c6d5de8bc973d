"""How fast an artifact is on this machine, how sure that is, and which of two artifacts is faster."""
