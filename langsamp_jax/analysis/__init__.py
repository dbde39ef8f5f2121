"""What a trained model has learned about languages."""
