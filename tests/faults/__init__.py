"""Commands that end at any of their changes to the disk, and go on."""
