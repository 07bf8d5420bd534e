"""Many runs as one question: their sweep, and what they say together."""
