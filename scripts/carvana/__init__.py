"""What the four scripts and the tools share. It imports nothing from outside itself but `unet`."""
