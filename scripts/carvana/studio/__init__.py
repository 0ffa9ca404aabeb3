"""The photo studio: synthetic cars, camera and room."""
