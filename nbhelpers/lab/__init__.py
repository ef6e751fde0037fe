"""What a person touches: figures, the head inspector, strict runs of the notebooks, results and pages."""
