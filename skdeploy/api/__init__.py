"""skdeploy from Python, as a notebook uses it: keywords, strings and paths in; one object for a bundle out."""
