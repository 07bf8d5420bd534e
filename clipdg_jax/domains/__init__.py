"""Natural or rendition? Labels, methods that tell the domains apart, calibrated deciders."""
