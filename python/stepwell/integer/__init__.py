"""Integer arithmetic that knows no layer: formats, rows, the overflow proof, packings."""
