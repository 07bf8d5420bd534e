"""The labelling page: people look at images and say natural, rendition or ambiguous."""
