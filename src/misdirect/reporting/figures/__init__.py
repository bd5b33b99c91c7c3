"""Pictures, drawn once and shown as SVG, PNG or PDF."""
