"""What is measured on a finished or running model, one file per question."""
