"""Files of images to and from `Volume`, one file per format."""
