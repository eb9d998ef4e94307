"""The denoisers: encoders of the BERT and RoBERTa families, and their large-vocabulary loss."""
