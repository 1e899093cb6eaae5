"""Random and hostile inputs for all ops on a library built with sanitizers."""
