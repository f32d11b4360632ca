"""The tools beside the library: `portopt compare`, `bench`, `show` and the command line."""
