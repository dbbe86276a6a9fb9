"""compose.yml, the images and the units: as files, and as a cluster that a real engine runs."""
