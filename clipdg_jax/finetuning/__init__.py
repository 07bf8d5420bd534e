"""Fine-tuning that protects pre-trained features: methods, training, and the comparison."""
