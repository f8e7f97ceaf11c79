"""Parameters from folders: runs and Hugging Face folders, converted where the model is another."""
