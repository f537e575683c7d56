"""Inspection images: folders of them, drawn ones, and photographs with painted defects."""
