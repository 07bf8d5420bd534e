"""Fine-tuning that protects the pre-trained features: methods, their training, and the comparison."""
